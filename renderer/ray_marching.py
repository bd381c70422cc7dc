"""Samples along rays: those points of a regular lattice that lie in occupied cells.

Ray r samples the intervals [t_k, t_k + step] with t_k = near + (k + jitter_r) * step, k >= 0; an
interval counts when its midpoint lies in an occupied cell and before `far`. `jitter` in [0, 1)
shifts a ray's whole lattice (0 when it is left out), as nerfacc's stratified sampling does.

Samples are packed: one flat list, sorted by ray and then by distance. Rays are first clipped to
the box around the occupied cells, and are then handled in groups, so that the memory in use
follows the size of a group and not the number of rays. The host waits for the device for the
sizes of the groups, and once a group for the number of its samples. On CUDA devices a kernel
(ray_marching.cu) does the same without groups.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import ray_marching_cuda
from .ray_marching_cuda import march_cuda

# lattice points looked at together, at some 100 bytes each: what fits a CPU's cache, and what
# keeps a GPU busy
GROUP_CPU, GROUP_GPU = 2**16, 2**22


def occupied_box(
    binaries: Bool[Tensor, "X Y Z"], aabb: Float[Tensor, " 6"]
) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Lower and upper corner of the box around all occupied cells; lower > upper without any."""
    low, high = [], []
    planes = (binaries.any(2).any(1), binaries.any(2).any(0), binaries.any(1).any(0))
    for axis, plane in enumerate(planes):
        index = torch.arange(len(plane), device=aabb.device)
        cell = (aabb[3 + axis] - aabb[axis]) / len(plane)
        low.append(aabb[axis] + torch.where(plane, index, len(plane)).amin() * cell)
        high.append(aabb[axis] + torch.where(plane, index + 1, 0).amax() * cell)
    return torch.stack(low), torch.stack(high)


def ray_box_distances(
    rays_o: Float[Tensor, "R 3"],
    rays_d: Float[Tensor, "R 3"],
    low: Float[Tensor, " 3"],
    high: Float[Tensor, " 3"],
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Distances at which rays enter and leave a box (slab method); enter > leave if they miss."""
    tiny = torch.finfo(rays_d.dtype).tiny ** 0.5
    safe = torch.where(rays_d.abs() < tiny, torch.full_like(rays_d, tiny), rays_d)
    to_low, to_high = (low - rays_o) / safe, (high - rays_o) / safe
    return torch.minimum(to_low, to_high).amax(-1), torch.maximum(to_low, to_high).amin(-1)


def lattice_range(
    start: Float[Tensor, " R"],
    t_enter: Float[Tensor, " R"],
    t_leave: Float[Tensor, " R"],
    step: float,
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """First k and number of k >= 0 with t_enter <= start + (k + 0.5) step < t_leave."""
    first = ((t_enter - start) / step - 0.5).ceil().clamp(min=0)
    count = ((t_leave - start) / step - 0.5).ceil() - first
    hit = (t_enter < t_leave) & (count > 0)
    return torch.where(hit, first, 0).long(), torch.where(hit, count, 0).long()


def group_edges(counts: Int[Tensor, " R"], most: int) -> list[tuple[int, int]]:
    """Cuts consecutive rays into groups of `most` candidates, give or take one ray's.

    Returns the edges of the groups as (ray, candidates before that ray), from (0, 0) to
    (R, sum(counts)).
    """
    before = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # [R + 1]
    total = int(before[-1])
    if total <= most:
        return [(0, 0), (len(counts), total)]
    targets = torch.arange(most, total, most, device=counts.device)
    rays = torch.searchsorted(before, targets, right=True) - 1
    inner = torch.stack([rays, before[rays]], dim=-1).tolist()
    return [(0, 0), *map(tuple, inner), (len(counts), total)]


@torch.no_grad()
def march(
    rays_o: Float[Tensor, "R 3"],
    rays_d: Float[Tensor, "R 3"],
    binaries: Bool[Tensor, "X Y Z"],
    aabb: Float[Tensor, " 6"],
    step: float,
    *,
    box: tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]] | None = None,
    near: float = 0.0,
    far: float = float("inf"),
    jitter: Float[Tensor, " R"] | None = None,
    group: int | None = None,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Packed samples (ray_indices, t_starts, t_ends) of rays with unit directions in a grid.

    `box`: the grid's `occupied_box`; None looks for it. `group`: lattice points looked at together;
    None chooses by device, and on CUDA devices one kernel that needs no groups.
    """
    box = occupied_box(binaries, aabb) if box is None else box
    if group is None:
        if ray_marching_cuda.fits(rays_o):
            return march_cuda(rays_o, rays_d, binaries, aabb, step, box, near, far, jitter)
        group = GROUP_CPU if rays_o.device.type == "cpu" else GROUP_GPU
    start = torch.full_like(rays_o[:, 0], near)
    if jitter is not None:
        start = start + jitter * step
    low, high = box
    t_enter, t_leave = ray_box_distances(rays_o, rays_d, low, high)
    t_leave = torch.where((low < high).all(), t_leave.clamp(max=far), near)
    first, counts = lattice_range(start, t_enter.clamp(min=near), t_leave, step)
    before = counts.cumsum(0) - counts

    # rays in units of cells: midpoint j of a ray (0 <= j < count) lies at origin + j * stride
    resolution = binaries.shape
    extent = (aabb[3:] - aabb[:3]).unbind()
    cells_per_unit = torch.stack([n / side for n, side in zip(resolution, extent, strict=True)])
    middle = start + (first + 0.5) * step
    origin = (rays_o + rays_d * middle[:, None] - aabb[:3]) * cells_per_unit
    stride = rays_d * (cells_per_unit * step)
    occupied = binaries.flatten()

    samples = []
    for (ray_0, size_0), (ray_1, size_1) in pairwise(group_edges(counts, group)):
        rays = torch.arange(ray_0, ray_1, device=counts.device)
        rays = rays.repeat_interleave(counts[ray_0:ray_1], output_size=size_1 - size_0)
        j = torch.arange(size_0, size_1, device=counts.device) - before.index_select(0, rays)
        cells = origin.index_select(0, rays).addcmul_(stride.index_select(0, rays), j[:, None])
        x, y, z = (cells[:, i].long().clamp_(0, resolution[i] - 1) for i in range(3))
        cell = (x * resolution[1] + y) * resolution[2] + z
        kept = occupied.index_select(0, cell).nonzero()[:, 0]
        rays, j = rays.index_select(0, kept), j.index_select(0, kept)
        samples.append((rays, start[rays] + (first[rays] + j) * step))
    ray_indices, t_starts = (torch.cat(parts) for parts in zip(*samples, strict=True))
    return ray_indices, t_starts, t_starts + step
