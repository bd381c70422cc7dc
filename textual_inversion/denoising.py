"""What training minimises: the denoising loss of a frozen diffusion model (Ho et al. 2020, eq. 14).

A batch is latents from the bank, noise, timesteps and prompts, all drawn on the device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..guidance.noise import add_noise, per_row
from .latent_bank import LatentBank


class Batch(NamedTuple):
    noisy: Float[Tensor, "B 4 h w"]
    target: Float[Tensor, "B 4 h w"]  # what the UNet should predict
    timestep: Int[Tensor, " B"]
    ids: Int[Tensor, "B L"]


def reseed(generator: torch.Generator, *key: int) -> torch.Generator:
    """The generator at the start of the stream that the key names.

    A step's draws so follow from its number, and a checkpoint needs no generator's state.
    """
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return generator.manual_seed(int(state) >> 1)  # manual_seed takes 63 bits


def draw_batch(
    bank: LatentBank,
    prompts: Int[Tensor, "P L"],
    alpha_bar: Float[Tensor, " T"],
    prediction: str,
    n: int,
    generator: torch.Generator,
) -> Batch:
    """n rows of random pictures, prompts, timesteps and noise.

    prediction: the scheduler's `prediction_type`.
    """
    device = bank.mean.device
    z = bank.draw(n, generator)
    noise = torch.randn(z.shape, device=device, generator=generator)
    t = torch.randint(len(alpha_bar), (n,), device=device, generator=generator)
    rows = torch.randint(len(prompts), (n,), device=device, generator=generator)
    a = alpha_bar[t]
    noisy = add_noise(z, noise, a.sqrt(), (1 - a).sqrt())
    return Batch(noisy, denoising_target(z, noise, a, prediction), t, prompts[rows])


def denoising_target(
    z: Float[Tensor, " B *shape"],
    noise: Float[Tensor, " B *shape"],
    alpha_bar: Float[Tensor, " B"],
    prediction: str,
) -> Float[Tensor, " B *shape"]:
    """Noise, velocity (Salimans and Ho 2022, appendix D) or the clean latents."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return per_row(alpha_bar.sqrt(), z) * noise - per_row((1 - alpha_bar).sqrt(), z) * z
    if prediction == "sample":
        return z
    raise ValueError(
        f"The model's scheduler has prediction_type {prediction!r}; epsilon, v_prediction and "
        "sample are known."
    )


def denoising_loss(
    unet: Callable[..., tuple[Tensor]], batch: Batch, text: Float[Tensor, "B L D"]
) -> Float[Tensor, ""]:
    """Mean squared error of the prediction, in float32; the UNet runs in the dtype of the text,
    which is what a text encoder makes of the batch's ids."""
    prediction = unet(batch.noisy.to(text.dtype), batch.timestep, text, return_dict=False)[0]
    return F.mse_loss(prediction.float(), batch.target)
