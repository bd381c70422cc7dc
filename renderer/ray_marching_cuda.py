"""The ray march on CUDA devices: a kernel counts the samples, and once more writes them."""

import functools
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program

SOURCE = Path(__file__).with_name("ray_marching.cu")
THREADS = 64  # of a block; a ray each


def fits(rays_o: Float[Tensor, "R 3"]) -> bool:
    """Whether the kernel can take these rays."""
    return (
        rays_o.is_cuda and rays_o.dtype == torch.float32 and cuda_program.is_usable(rays_o.device)
    )


def march_cuda(
    rays_o: Float[Tensor, "R 3"],
    rays_d: Float[Tensor, "R 3"],
    binaries: Bool[Tensor, "X Y Z"],
    aabb: Float[Tensor, " 6"],
    step: float,
    box: tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]],
    near: float,
    far: float,
    jitter: Float[Tensor, " R"] | None,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """`march`; the host waits for the device once, for the number of samples."""
    n, kernels = len(rays_o), program(rays_o.device)
    scene = (
        *(rays_o.contiguous(), rays_d.contiguous(), n),
        *(binaries.contiguous(), *binaries.shape, aabb.contiguous()),
        *(*(corner.contiguous() for corner in box), float(near), float(far), float(step)),
        None if jitter is None else jitter.contiguous(),
    )
    counts = torch.zeros(n, dtype=torch.long, device=rays_o.device)
    if n > 0:
        kernels.launch("march", (-(-n // THREADS),), (THREADS,), *scene, None, counts, None, None)
    after = counts.cumsum(0)
    total = int(after[-1]) if n > 0 else 0
    ray_indices, t_starts = counts.new_empty(total), rays_o.new_empty(total)
    if total > 0:
        output = (after - counts, None, ray_indices, t_starts)
        kernels.launch("march", (-(-n // THREADS),), (THREADS,), *scene, *output)
    return ray_indices, t_starts, t_starts + step


@functools.cache
def program(device: torch.device) -> Program:
    return Program(SOURCE.read_text(), device)
