"""The losses on rendered pictures. Pure functions; a weight belongs to the caller.

Pictures are [B H W C] in [0, 1], B views or frames; masks and opacities are [B H W 1]; N samples
of all rays lie packed. Every loss is a mean over pixels or rays: no weight depends on a resolution.
"""

import functools
import operator
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Scalar = Float[Tensor, ""]


def total(parts: Iterable[Tensor]) -> Tensor:
    """Their sum, without the 0 that Python's begins with."""
    return functools.reduce(operator.add, parts)


def rgb_on_mask(
    rgb: Float[Tensor, "B H W 3"],
    reference: Float[Tensor, "B H W 3"],
    mask: Float[Tensor, "B H W 1"],
) -> Scalar:
    """Mean over all pixels of |M (rgb - reference)|^2 (Magic123, eq. 3): free off the mask."""
    return F.mse_loss(mask * rgb, mask * reference)


def mask_bce(
    opacity: Float[Tensor, "B H W 1"], mask: Float[Tensor, "B H W 1"], eps: float = 1e-5
) -> Scalar:
    """Binary cross entropy of opacity against the mask.

    Written out, since torch's own raises under CUDA autocast.
    """
    o = opacity.clamp(eps, 1 - eps)
    return -torch.lerp((1 - o).log(), o.log(), mask).mean()


def normal_smoothness_2d(comp_normal: Float[Tensor, "B H W 3"]) -> Scalar:
    """Squared differences of neighbouring normals, vertical and horizontal (as in threestudio)."""
    down = F.mse_loss(comp_normal[:, 1:], comp_normal[:, :-1])
    return down + F.mse_loss(comp_normal[:, :, 1:], comp_normal[:, :, :-1])


def total_variation(images: Float[Tensor, "B H W C"]) -> Scalar:
    """Absolute differences of neighbouring pixels (Rudin, Osher & Fatemi 1992, anisotropic)."""
    down = F.l1_loss(images[:, 1:], images[:, :-1])
    return down + F.l1_loss(images[:, :, 1:], images[:, :, :-1])


def orientation(
    weights: Float[Tensor, "N 1"],
    normal: Float[Tensor, "N 3"],
    ray_direction: Float[Tensor, "N 3"],
    opacity: Float[Tensor, "B H W 1"],
) -> Scalar:
    """Normals that face away from the camera: sum of w max(0, n . d)^2 a ray (Ref-NeRF, eq. 11).

    The mean runs over the rays that hit something. The weights are constants here, so that a
    back-facing sample is turned, not made transparent.
    """
    away = (normal * ray_direction).sum(-1, keepdim=True).clamp_min(0)
    rays_hit = (opacity > 0).sum().clamp_min(1)
    return (weights.detach() * away.square()).sum() / rays_hit


def sparsity(opacity: Float[Tensor, "B H W 1"]) -> Scalar:
    """Mean of sqrt(opacity^2 + 0.01): empty space stays empty (DreamFusion, appendix A.2)."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaque(opacity: Float[Tensor, "B H W 1"], eps: float = 1e-3) -> Scalar:
    """Binary entropy of opacity: least for pixels that are clear or solid (Latent-NeRF, sec. 3)."""
    o = opacity.clamp(eps, 1 - eps)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def z_variance(variance: Float[Tensor, "B H W 1"], opacity: Float[Tensor, "B H W 1"]) -> Scalar:
    """Mean variance of depth along rays that are more than half opaque (HiFA); 0 without any."""
    solid = (opacity > 0.5).to(variance)
    return (variance * solid).sum() / solid.sum().clamp_min(1)
