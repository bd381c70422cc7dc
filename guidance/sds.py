"""Score distillation, the maths (DreamFusion, Poole et al. 2022). Torch alone, no host, no model.

`z` are latents of what was rendered, [B C H W] for images or [B C F H W] for clips; `eps` is unit
noise; `t` a diffusion timestep in 0..T-1, one a row of the batch; `alpha_bar` [B] is the product of
(1 - beta) up to t, so that z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

# w(t) by the names that threestudio's configs use (`weighting_strategy`)
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alpha_bar: 1 - alpha_bar,  # DreamFusion: sigma_t^2
    "dreamfusion": lambda alpha_bar: 1 - alpha_bar.sqrt(),  # threestudio's unified guidances
    "fantasia3d": lambda alpha_bar: alpha_bar.sqrt() * (1 - alpha_bar),  # Chen et al. 2023
    "uniform": torch.ones_like,
}


def timestep_range(low: float, high: float, num_timesteps: int) -> tuple[int, int]:
    """First and last timestep, both included, of the fractions `low`..`high` of all timesteps."""
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"Diffusion timesteps from {low} to {high} of the whole range: "
            "0 <= min_step_percent <= max_step_percent <= 1 is needed, for instance 0.02 and 0.98."
        )
    last = num_timesteps - 1
    return min(round(low * num_timesteps), last), min(round(high * num_timesteps), last)


def sample_timesteps(
    n: int,
    low: int,
    high: int,
    *,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " {n}"]:
    """n timesteps, uniform in low..high, both included."""
    return torch.randint(low, high + 1, (n,), device=device, generator=generator)


def per_row(x: Float[Tensor, " B"], like: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *ones"]:
    """x with trailing dimensions of 1, to multiply each row of `like`."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(
    z: Float[Tensor, "B *shape"], eps: Float[Tensor, "B *shape"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B *shape"]:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps (DDPM, Ho et al. 2020, eq. 4)."""
    return per_row(alpha_bar.sqrt(), z) * z + per_row((1 - alpha_bar).sqrt(), z) * eps


def noise_from_velocity(
    v: Float[Tensor, "B *shape"], z_t: Float[Tensor, "B *shape"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B *shape"]:
    """eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z_t (Salimans and Ho 2022, appendix D)."""
    return per_row(alpha_bar.sqrt(), v) * v + per_row((1 - alpha_bar).sqrt(), v) * z_t


def classifier_free_guidance(
    cond: Float[Tensor, "*shape"], uncond: Float[Tensor, "*shape"], scale: float, start: str
) -> Float[Tensor, "*shape"]:
    """start + scale (cond - uncond), where `start` says "cond" or "uncond".

    From `uncond` (Ho and Salimans 2021) a scale of 1 is no guidance; from `cond`, 0 is.
    """
    return {"cond": cond, "uncond": uncond}[start] + scale * (cond - uncond)


def sds_gradient(
    eps_hat: Float[Tensor, "B *shape"], eps: Float[Tensor, "B *shape"], weight: Float[Tensor, " B"]
) -> Float[Tensor, "B *shape"]:
    """w(t) (eps_hat - eps) (DreamFusion, eq. 3)."""
    return per_row(weight, eps) * (eps_hat - eps)


def finite_part(
    grad: Float[Tensor, "B *shape"],
) -> tuple[Float[Tensor, "B *shape"], Float[Tensor, ""]]:
    """grad with 0 wherever it isn't finite, and the share of the row that lost most by it."""
    lost = (~grad.isfinite()).flatten(1).float().mean(1)
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0), lost.max()


def sds_loss(z: Float[Tensor, "B *shape"], grad: Float[Tensor, "B *shape"]) -> Float[Tensor, ""]:
    """0.5 sum (z - stopgrad(z - grad))^2 / B: a loss whose gradient in z is exactly grad / B.

    It is written with z - stopgrad(z), exactly 0, since z - (z - grad) would round a small `grad`.
    """
    return 0.5 * (z - z.detach() + grad.detach()).square().sum() / len(z)
