"""Denoising diffusion: the loss that the toy priors learn by, and samples of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from .folders import SCHEDULER

Predict = Callable[[Tensor, Tensor], Tensor]  # (z_t, t) -> noise


def schedule() -> Any:
    """The noise that all folders name (diffusers annotates no more than a tuple)."""
    return DDIMScheduler.from_config(SCHEDULER)


def alpha_bars(device: torch.device | str) -> Float[Tensor, " T"]:
    """Products of 1 - beta of the schedule."""
    return schedule().alphas_cumprod.to(device)


def denoising_loss(predict: Predict, z: Float[Tensor, "B C *size"], alpha_bar: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at random timesteps (DDPM, Ho et al. 2020)."""
    t = torch.randint(0, len(alpha_bar), (len(z),), device=z.device)
    a = alpha_bar[t].reshape(-1, *[1] * (z.ndim - 1))
    eps = torch.randn_like(z)
    return F.mse_loss(predict(a.sqrt() * z + (1 - a).sqrt() * eps, t), eps)


@torch.no_grad()
def sample(
    predict: Predict,
    uncond: Predict,
    shape: tuple[int, ...],
    *,
    scale: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """DDIM (Song et al. 2021) with classifier-free guidance uncond + scale (cond - uncond)."""
    scheduler = schedule()
    scheduler.set_timesteps(steps)
    device = generator.device
    z = torch.randn(shape, generator=generator, device=device)
    for t in scheduler.timesteps.tolist():
        at = torch.full((shape[0],), t, device=device)
        free = uncond(z, at)
        z = scheduler.step(free + scale * (predict(z, at) - free), t, z).prev_sample
    return z
