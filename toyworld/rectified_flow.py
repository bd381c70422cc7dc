"""Rectified flow over clips whose first latent frame may be given clean, as Wan 2.2 has it: the
loss that the flow prior learns by, and samples of it. Torch alone.

z_s = (1 - s) z + s eps, and the network predicts v = eps - z (Liu et al. 2022). Latents are
[B C f h w]; the network is told a time for each latent frame, and that of a clean one is 0.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # (z_s, times [B f]) -> v
SHIFT = 3.0  # Wan's at 480p: more of the way lies near the noise, where a motion is decided


def shifted(fraction: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
    """s at a fraction of the way from the data to the noise (Esser et al. 2024, eq. 23)."""
    return SHIFT * fraction / (1 + (SHIFT - 1) * fraction)


def given(
    z: Float[Tensor, "B C f h w"],
    s: Float[Tensor, " B"],
    first: Float[Tensor, "B C 1 h w"],
    seen: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, "B C f h w"], Float[Tensor, "B f"]]:
    """z with the first frames of the clips where they are seen, and the times of its frames."""
    start = torch.where(seen[:, None, None, None, None], first, z[:, :, :1])
    times = s[:, None].expand(-1, z.shape[2])
    times = torch.cat([times[:, :1] * ~seen[:, None], times[:, 1:]], dim=1)
    return torch.cat([start, z[:, :, 1:]], dim=2), times


def flow_loss(
    predict: Predict,
    z: Float[Tensor, "B C f h w"],
    first: Float[Tensor, "B C 1 h w"],
    seen: Bool[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Mean squared error of v at times whose fractions are uniform, over the frames with noise."""
    s = shifted(torch.rand(len(z), device=z.device))
    eps = torch.randn_like(z)
    at = s[:, None, None, None, None]
    z_s, times = given((1 - at) * z + at * eps, s, first, seen)
    error = (predict(z_s, times).float() - (eps - z)).square().mean((1, 3, 4))  # [B f]
    noisy = (times > 0).float()
    return (error * noisy).sum() / noisy.sum()


@torch.no_grad()
def euler(
    predict: Predict,
    uncond: Predict,
    shape: tuple[int, int, int, int, int],
    first: Float[Tensor, "B C 1 h w"],
    seen: Bool[Tensor, " B"],
    *,
    scale: float,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "B C f h w"]:
    """Euler's method with classifier-free guidance uncond + scale (cond - uncond)."""
    z = torch.randn(shape, generator=generator, device=generator.device)
    way = shifted(torch.linspace(1, 0, steps + 1))
    for now, then in pairwise(way.tolist()):
        s = torch.full((len(z),), now, device=z.device)
        z, times = given(z, s, first, seen)
        free = uncond(z, times)
        z = z + (then - now) * (free + scale * (predict(z, times) - free))
    return given(z, z.new_zeros(len(z)), first, seen)[0]
