"""From noisy latents back to clean ones in a few steps. Torch alone.

A step asks for the noise in z_t and puts what it then takes for clean at a time that is nearer to
the data, with that same noise: DDIM's (Song et al. 2021, eq. 12 with sigma = 0) for DDPM, Euler's
for a rectified flow and for EDM. All of them follow the same ordinary differential equation.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .noise import Noise, add_noise, per_row


def clean_part(
    z_t: Float[Tensor, " B *shape"],
    eps: Float[Tensor, " B *shape"],
    alpha: Float[Tensor, " B"],
    sigma: Float[Tensor, " B"],
) -> Float[Tensor, " B *shape"]:
    """z of z_t = alpha z + sigma eps; alpha has to be above 0."""
    return (z_t - per_row(sigma, z_t) * eps) / per_row(alpha, z_t)


@torch.no_grad()
def denoise(
    noise: Noise,
    noise_in: Callable[[Tensor, Tensor], Tensor],
    z_t: Float[Tensor, " B *shape"],
    t: Shaped[Tensor, " B"],
    steps: int,
) -> Float[Tensor, " B *shape"]:
    """Clean latents from z_t, each row from its own time t, in `steps` steps of the same length in
    fractions of the way. One step is what the network takes for clean at t.

    noise_in: (z_t, t) -> eps_hat, as `guided_noise` has it.
    """
    now = t
    for step in range(1, steps + 1):
        eps = noise_in(z_t, now)
        z = clean_part(z_t, eps, *noise.scales(now))
        if step == steps:
            return z
        now = noise.nearer(t, 1 - step / steps)
        z_t = add_noise(z, eps, *noise.scales(now))
    raise ValueError(f"Denoising in {steps} steps was asked for: it takes 1 at least.")
