"""Compositing on CUDA devices: one kernel forward, one backward, and two that sieve samples."""

import functools
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, source_of
from .compositing import Composite, Sieve

SOURCE = Path(__file__).with_name("compositing.cu")
RAYS = 4  # of a block; a warp each
MOST_CHANNELS = 8  # of colours, which a lane keeps in registers
USUAL = 3, True  # channels, and whether there are normals


def fits(
    density: Float[Tensor, " N"],
    rgb: Float[Tensor, "N C"] | None = None,
    normal: Float[Tensor, "N 3"] | None = None,
    background: Float[Tensor, "R c"] | None = None,
) -> bool:
    """Whether the kernels can take these; the sieve needs no more than density."""
    given = [x for x in (density, rgb, normal, background) if x is not None]
    channels = {x.shape[1] for x in (rgb, background) if x is not None}
    return (
        all(x.is_cuda and x.dtype == torch.float32 for x in given)
        and len(channels) <= 1
        and max(channels, default=0) <= MOST_CHANNELS
        and cuda_program.is_usable(density.device)
    )


def composite_cuda(
    density: Float[Tensor, " N"],
    rgb: Float[Tensor, "N C"],
    normal: Float[Tensor, "N 3"] | None,
    background: Float[Tensor, "R C"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
) -> Composite:
    """`compositing.composite`; it can be differentiated once."""
    colours = rgb, normal, background
    return Composite(*CudaComposite.apply(density, *colours, t_starts, t_ends, ray_indices))


class CudaComposite(torch.autograd.Function):
    """Composite's fields, without the normal where none comes."""

    @staticmethod
    def forward(ctx, density, rgb, normal, background, t_starts, t_ends, ray_indices):
        n_rays, channels = background.shape
        inputs = [x.contiguous() for x in (density, t_starts, t_ends, rgb)]
        inputs += [None if normal is None else normal.contiguous(), background.contiguous()]
        transmittance, weights = (torch.empty_like(inputs[0]) for _ in range(2))
        comp_rgb, foreground = (background.new_empty(n_rays, channels) for _ in range(2))
        opacity, depth, variance = (background.new_empty(n_rays, 1) for _ in range(3))
        sums, comp_normal = (
            None if normal is None else normal.new_empty(n_rays, 3) for _ in range(2)
        )
        outputs = weights, comp_rgb, foreground, opacity, depth, variance
        kernels = program(channels, normal is not None, density.device)
        arguments = *inputs, transmittance, *outputs, sums, comp_normal
        run(kernels, "forward", ray_indices, n_rays, *arguments)
        kept = transmittance, weights, opacity, depth, variance, sums
        ctx.save_for_backward(ray_indices, *inputs, *kept)
        ctx.set_materialize_grads(False)
        return outputs if normal is None else (*outputs, comp_normal)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        ray_indices, density, t_starts, t_ends, rgb, normal, background, *kept = ctx.saved_tensors
        n_rays, channels = background.shape
        needed = dict(zip(("rgb", "normal", "background"), ctx.needs_input_grad[1:4], strict=True))
        grads = [None if grad is None else grad.contiguous() for grad in grads]
        grads += [None] * (7 - len(grads))  # none of a normal
        found = [
            torch.empty_like(density),
            torch.empty_like(rgb) if needed["rgb"] else None,
            torch.empty_like(normal) if needed["normal"] else None,
            torch.empty_like(background) if needed["background"] else None,
        ]
        inputs = density, t_starts, t_ends, rgb, normal, background
        kernels = program(channels, normal is not None, density.device)
        run(kernels, "backward", ray_indices, n_rays, *inputs, *kept, *grads, *found)
        return *found, None, None, None


def sieve_cuda(
    density: Float[Tensor, " N"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
    n_rays: int,
    min_alpha: Float[Tensor, ""],
    min_transmittance: float,
    min_lit_transmittance: float,
) -> Sieve:
    """`compositing.sieve` of what `compositing.look` says of these; the host waits for it once."""
    samples = density.contiguous(), t_starts.contiguous(), t_ends.contiguous()
    least = min_alpha.float(), float(min_transmittance), float(min_lit_transmittance)
    kernels = program(*USUAL, density.device)  # it knows neither colours nor normals
    new = functools.partial(torch.empty, dtype=torch.int64, device=ray_indices.device)
    seen, counts = torch.empty_like(ray_indices, dtype=torch.uint8), new(2 * n_rays)
    run(kernels, "look", ray_indices, n_rays, *samples, *least, seen, counts)
    ends = counts.cumsum(0)
    n_kept, n_both = ends[n_rays - 1 :: n_rays].tolist() if n_rays else (0, 0)
    n_lit = n_both - n_kept
    places = Sieve(*map(new, (n_kept, n_lit, n_kept - n_lit, n_kept, n_kept)))
    run(kernels, "sieve", ray_indices, n_rays, seen, ends, *places)
    return places


def run(
    kernels: Program, name: str, ray_indices: Tensor, n_rays: int, *arguments: Tensor | float | None
) -> None:
    if n_rays > 0:
        of_rays = ray_indices.contiguous(), len(ray_indices), n_rays
        kernels.launch(name, (-(-n_rays // RAYS),), (32 * RAYS,), *of_rays, *arguments)


@functools.cache
def program(channels: int, normals: bool, device: torch.device) -> Program:
    constants = {"CHANNELS": channels, "NORMALS": int(normals)}
    return Program(source_of(SOURCE, constants), device)
