"""Score distillation, the maths (DreamFusion, Poole et al. 2022). Torch alone, no host, no model.

`z` are latents of what was rendered, [B C H W] for images or [B C F H W] for clips; `eps` is unit
noise; `alpha_bar` [B] is the share of the signal in z_t's variance, for DDPM the product of
(1 - beta) up to t (noise.py has the others).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .noise import per_row

# w(t) by the names that threestudio's configs use (`weighting_strategy`)
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alpha_bar: 1 - alpha_bar,  # DreamFusion: sigma_t^2
    "dreamfusion": lambda alpha_bar: 1 - alpha_bar.sqrt(),  # threestudio's unified guidances
    "fantasia3d": lambda alpha_bar: alpha_bar.sqrt() * (1 - alpha_bar),  # Chen et al. 2023
    "uniform": torch.ones_like,
}


def classifier_free_guidance(
    cond: Float[Tensor, " *shape"],
    uncond: Float[Tensor, " *shape"],
    scale: float | Float[Tensor, "..."],
    start: str,
) -> Float[Tensor, " *shape"]:
    """start + scale (cond - uncond), where `start` says "cond" or "uncond".

    From `uncond` (Ho and Salimans 2021) a scale of 1 is no guidance; from `cond`, 0 is. A tensor
    has a scale for each frame, for instance.
    """
    return {"cond": cond, "uncond": uncond}[start] + scale * (cond - uncond)


def is_conditional(scale: float | Tensor, start: str) -> bool:
    """Whether guidance of this scale is `cond` alone. (Nobody looks into a tensor: it may be on a
    GPU.)"""
    return not isinstance(scale, Tensor) and scale == {"cond": 0, "uncond": 1}[start]


def sds_gradient(
    eps_hat: Float[Tensor, " B *shape"],
    eps: Float[Tensor, " B *shape"],
    weight: Float[Tensor, " B"],
) -> Float[Tensor, " B *shape"]:
    """w(t) (eps_hat - eps) (DreamFusion, eq. 3)."""
    return per_row(weight, eps) * (eps_hat - eps)


def finite_part(
    grad: Float[Tensor, " B *shape"],
) -> tuple[Float[Tensor, " B *shape"], Float[Tensor, ""]]:
    """grad with 0 wherever it isn't finite, and the share of the row that lost most by it."""
    lost = (~grad.isfinite()).flatten(1).float().mean(1)
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0), lost.max()


def sds_loss(z: Float[Tensor, " B *shape"], grad: Float[Tensor, " B *shape"]) -> Float[Tensor, ""]:
    """0.5 sum (z - stopgrad(z - grad))^2 / B: a loss whose gradient in z is exactly grad / B.

    It is written with z - stopgrad(z), exactly 0, since z - (z - grad) would round a small `grad`.
    """
    return 0.5 * (z - z.detach() + grad.detach()).square().sum() / len(z)
