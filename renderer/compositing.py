"""Emission and absorption along rays, on packed samples (Max 1995; NeRF, eq. 3).

Sample i covers [t_start_i, t_end_i] of ray `ray_indices[i]` with constant density sigma_i per unit
length. Its opacity is alpha_i = 1 - exp(-sigma_i (t_end_i - t_start_i)), the light that reaches it
is T_i = exp(-sum over the samples before it on the ray of sigma (t_end - t_start)), and its weight
in the ray's colour is T_i alpha_i. `ray_indices` is sorted; within a ray samples go away from the
camera. A ray without samples is empty: all of its sums are 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

# exp(-100) is below float32's smallest number, so more optical thickness than this changes nothing
OPAQUE = 100.0


class _SumBefore(torch.autograd.Function):
    """Sum of the ray's values before each sample (or after it), excluding the sample's own.

    One running sum goes over all rays, and a ray's base is taken off it. In float64 that leaves an
    error of about 1e-16 of the running sum: nothing beside 1, with values bounded by OPAQUE and
    many millions of samples. The gradient of a sum before is the sum after.
    """

    @staticmethod
    def forward(ctx, values, first, last, after):
        ctx.save_for_backward(first, last)
        ctx.after = after
        running = values.cumsum(0, dtype=torch.float64)
        if after:
            return (running.index_select(0, last) - running).to(values.dtype)
        running -= values
        return (running - running.index_select(0, first)).to(values.dtype)

    @staticmethod
    def backward(ctx, grad):
        first, last = ctx.saved_tensors
        return _SumBefore.apply(grad, first, last, not ctx.after), None, None, None


def ray_offsets(ray_indices: Int[Tensor, " N"], n_rays: int) -> Int[Tensor, " {n_rays}+1"]:
    """Ray r's samples are those from offsets[r] to offsets[r + 1], the latter excluded."""
    return torch.searchsorted(ray_indices, torch.arange(n_rays + 1, device=ray_indices.device))


def sum_before(
    values: Float[Tensor, " N"], ray_indices: Int[Tensor, " N"], n_rays: int
) -> Float[Tensor, " N"]:
    """For each sample, the sum of `values` over the samples before it on the same ray."""
    offsets = ray_offsets(ray_indices, n_rays)
    first = offsets.index_select(0, ray_indices)
    last = offsets.index_select(0, ray_indices + 1) - 1
    return _SumBefore.apply(values, first, last, False)


def alpha_and_transmittance(
    density: Float[Tensor, " N"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
    n_rays: int,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """alpha_i and T_i of the module's text."""
    thickness = (density * (t_ends - t_starts)).clamp(max=OPAQUE)
    before = sum_before(thickness, ray_indices, n_rays)
    return -torch.expm1(-thickness), torch.exp(-before)


def render_weights(
    density: Float[Tensor, " N"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
    n_rays: int,
) -> Float[Tensor, " N"]:
    """Weight T_i alpha_i of each sample; a ray's weights sum to its opacity."""
    alpha, transmittance = alpha_and_transmittance(density, t_starts, t_ends, ray_indices, n_rays)
    return transmittance * alpha


def look(
    density: Float[Tensor, " N"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
    n_rays: int,
    min_alpha: Float[Tensor, ""],
    min_transmittance: float,
    min_lit_transmittance: float,
) -> UInt8[Tensor, " N"]:
    """2 for samples that are opaque enough and not hidden behind others on their ray; 1 for those
    of them that less light reaches than makes them lit; 0 for the others."""
    alpha, transmittance = alpha_and_transmittance(density, t_starts, t_ends, ray_indices, n_rays)
    counts = (alpha >= min_alpha) & (transmittance >= min_transmittance)
    return counts * (1 + (transmittance >= min_lit_transmittance).byte())


class Sieve(NamedTuple):
    """Which of the samples that were looked at are kept, and which of those are lit.

    kept: places among all that were looked at.
    lit: places among the kept; dark: of the others.
    order: of each that is kept, its place in lit and dark, one behind the other.
    ahead: of each that is kept, the place in lit of the last lit one up to it, or of the first.
    """

    kept: Int[Tensor, " K"]
    lit: Int[Tensor, " L"]
    dark: Int[Tensor, " D"]
    order: Int[Tensor, " K"]
    ahead: Int[Tensor, " K"]


def sieve(seen: UInt8[Tensor, " N"]) -> Sieve:
    """What `look` says, as places."""
    kept = seen.nonzero()[:, 0]
    lit = seen.index_select(0, kept) > 1
    parts = lit.nonzero()[:, 0], (~lit).nonzero()[:, 0]
    places = torch.arange(len(kept), device=kept.device)
    order = torch.empty_like(kept).index_copy_(0, torch.cat(parts), places)
    return Sieve(kept, *parts, order, lit.cumsum(0).sub_(1).clamp_(min=0))


class _SumOfRays(torch.autograd.Function):
    """Sum of each ray's rows. On GPUs a thread walks along a ray, where index_add would have the
    ray's samples wait for each other; the result is the same from run to run."""

    @staticmethod
    def forward(ctx, values, ray_indices, n_rays):
        ctx.save_for_backward(ray_indices)
        if values.is_cuda:
            offsets = ray_offsets(ray_indices, n_rays)
            return torch.segment_reduce(values, "sum", offsets=offsets, initial=0, unsafe=True)
        zeros = values.new_zeros(n_rays, values.shape[1])
        return zeros.index_add_(0, ray_indices, values)

    @staticmethod
    def backward(ctx, grad):
        (ray_indices,) = ctx.saved_tensors
        return grad.index_select(0, ray_indices), None, None


def accumulate(
    weights: Float[Tensor, " N"],
    values: Float[Tensor, "N C"] | None,
    ray_indices: Int[Tensor, " N"],
    n_rays: int,
) -> Float[Tensor, "R C"]:
    """Sum of weights * values over each ray's samples; without values, of the weights (C = 1)."""
    weighted = weights[:, None] if values is None else weights[:, None] * values
    return _SumOfRays.apply(weighted, ray_indices, n_rays)


def depth_variance(
    weights: Float[Tensor, " N"],
    t: Float[Tensor, " N"],
    opacity: Float[Tensor, "R 1"],
    ray_indices: Int[Tensor, " N"],
) -> Float[Tensor, "R 1"]:
    """Variance of depth along each ray, under weights normalised to 1 (HiFA, "z-variance").

    0 where the ray's opacity is at most 0.5: no surface is there whose thickness could be meant.
    """
    n_rays = len(opacity)
    share = weights / opacity[:, 0].clamp(min=1e-5).index_select(0, ray_indices)
    mean = accumulate(share, t[:, None], ray_indices, n_rays)
    deviation = t[:, None] - mean.index_select(0, ray_indices)
    return accumulate(share, deviation**2, ray_indices, n_rays) * (opacity > 0.5)


class Composite(NamedTuple):
    """What samples weigh, and what they come to on each ray."""

    weights: Float[Tensor, " N"]
    comp_rgb: Float[Tensor, "R C"]  # over the background
    comp_rgb_fg: Float[Tensor, "R C"]  # without it
    opacity: Float[Tensor, "R 1"]
    depth: Float[Tensor, "R 1"]  # weighted sum of distances
    z_variance: Float[Tensor, "R 1"]  # of distances, see `depth_variance`
    comp_normal: Float[Tensor, "R 3"] | None = None  # mean normal in [0, 1], times opacity


def composite(
    density: Float[Tensor, " N"],
    rgb: Float[Tensor, "N C"],
    normal: Float[Tensor, "N 3"] | None,
    background: Float[Tensor, "R C"],
    t_starts: Float[Tensor, " N"],
    t_ends: Float[Tensor, " N"],
    ray_indices: Int[Tensor, " N"],
) -> Composite:
    """The definition; compositing_cuda.py has a faster twin."""
    n_rays = len(background)
    weights = render_weights(density, t_starts, t_ends, ray_indices, n_rays)
    t = (0.5 * (t_starts + t_ends))[:, None]
    values = [rgb, t, torch.ones_like(t), *([] if normal is None else [normal])]
    sums = accumulate(weights, torch.cat(values, dim=-1), ray_indices, n_rays)
    foreground, depth, opacity, *normals = sums.split([v.shape[1] for v in values], dim=-1)
    return Composite(
        weights,
        foreground + (1 - opacity) * background,
        foreground,
        opacity,
        depth,
        depth_variance(weights, t[:, 0], opacity, ray_indices),
        *((F.normalize(direction, dim=-1) + 1) / 2 * opacity for direction in normals),
    )
