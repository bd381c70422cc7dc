"""Occupancy grid: which cells of the scene's box hold density, so that rays skip the rest.

The scheme is Instant-NGP's (section 4 of its paper, "occupancy grids"): a running maximum of
alpha ~ density * step at random points of the cells, decayed at each update, and cut at a
threshold. While the scene moves the caller evaluates each point at a random frame time, so
that a cell counts as occupied when anything passes through it.

Cells are numbered with x slowest and z fastest. Buffers carry the names and shapes of nerfacc's
`OccGridEstimator` with one level, so that checkpoints travel between the two.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .ray_marching import occupied_box

UPDATE_EVERY = 16  # training steps
WARM_UP = 256  # training steps in which an update visits every cell
DECAY = 0.95  # of a visited cell's value, per update
THRESHOLD = 0.01  # alpha of one step above which a cell is occupied


def cell_points(
    cells: Int[Tensor, " N"],
    resolution: Int[Tensor, " 3"],
    aabb: Float[Tensor, " 6"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N 3"]:
    """One uniformly random world-space point in each of the numbered cells."""
    _, ny, nz = resolution.unbind()
    corner = torch.stack([cells // (ny * nz), cells // nz % ny, cells % nz], dim=-1)
    offset = torch.rand(corner.shape, generator=generator, device=cells.device)
    return aabb[:3] + (corner + offset) / resolution * (aabb[3:] - aabb[:3])


def decayed_maximum(
    occs: Float[Tensor, " M"],
    cells: Int[Tensor, " N"],
    values: Float[Tensor, " N"],
    decay: float,
) -> Float[Tensor, " M"]:
    """max(decay * occs, values) at the visited cells; a cell visited twice decays once."""
    decayed = occs.clone()
    decayed[cells] = occs[cells] * decay  # repeats write the same value
    return decayed.scatter_reduce(0, cells, values, "amax", include_self=True)


class OccupancyGrid(nn.Module):
    """Buffers: resolution [3], aabbs [1 6], occs [cells] (alpha of a step), binaries [1 X Y Z]."""

    resolution: Tensor
    aabbs: Tensor
    occs: Tensor
    binaries: Tensor

    def __init__(self, aabb: Float[Tensor, " 6"], resolution: int = 32) -> None:
        super().__init__()
        shape = [resolution] * 3
        self.register_buffer("resolution", torch.tensor(shape, dtype=torch.int32))
        self.register_buffer("aabbs", aabb.detach().clone().reshape(1, 6))
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros([1, *shape], dtype=torch.bool))
        self.box: tuple = ()  # `occupied_box` and the state of the cells it belongs to
        self.written: tuple = ()  # state of the cells, and the event that it was there

    def fill(self) -> None:
        """Mark every cell as occupied."""
        self.occs.fill_(1.0)
        self.binaries.fill_(True)

    @torch.no_grad()
    def occupied_box(self) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
        """Corners of the box around the occupied cells; looked for when they have changed."""
        cells = self.binaries
        if cells.is_inference():  # nobody counts what is written into these
            return occupied_box(cells[0], self.aabbs[0])
        if not self.box or self.box[0] is not cells or self.box[1] != cells._version:
            self.box = cells, cells._version, occupied_box(cells[0], self.aabbs[0])
        return self.box[2]

    def alpha_threshold(self) -> Float[Tensor, ""]:
        """Alpha of a step under which nothing is there: THRESHOLD, or the mean if that is less."""
        return self.occs.mean().clamp(max=THRESHOLD)

    def cells_to_visit(
        self, step: int, *, generator: torch.Generator | None = None
    ) -> Int[Tensor, " N"]:
        """Every cell in the warm-up; later a quarter at random and as many occupied ones."""
        total, device = self.occs.numel(), self.occs.device
        if step < WARM_UP:
            return torch.arange(total, device=device)
        quarter = total // 4
        uniform = torch.randint(total, (quarter,), generator=generator, device=device)
        occupied = self.binaries.flatten().nonzero()[:, 0]
        if len(occupied) > quarter:
            pick = torch.randint(len(occupied), (quarter,), generator=generator, device=device)
            occupied = occupied[pick]
        return torch.cat([uniform, occupied])

    @torch.no_grad()
    def update(
        self,
        step: int,
        alpha: Callable[[Tensor], Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Visit cells and cut anew. `alpha`: points [N 3] -> opacity of one step [N]."""
        cells = self.cells_to_visit(step, generator=generator)
        points = cell_points(cells, self.resolution, self.aabbs[0], generator=generator)
        self.occs.copy_(decayed_maximum(self.occs, cells, alpha(points).to(self.occs), DECAY))
        self.binaries.copy_((self.occs > self.alpha_threshold()).view_as(self.binaries))
        if cells.is_cuda:
            there = torch.cuda.Event()
            there.record()
            self.written = self.binaries._version, there

    def ready(self) -> torch.cuda.Event | None:
        """The event that the cells on a GPU are what they are now; None: nobody knows."""
        if not self.written or self.binaries.is_inference():
            return None
        version, event = self.written
        return event if version == self.binaries._version else None
