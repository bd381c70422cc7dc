"""The pictures as the diffusion model sees them: each one's VAE posterior, computed once. A draw
samples the posterior afresh, so the bank loses nothing against encoding in every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class LatentBank:
    """Posteriors N(mean, std^2) of latents, times the VAE's scaling factor, in float32."""

    mean: Float[Tensor, "N 4 h w"]
    std: Float[Tensor, "N 4 h w"]

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} 4 h w"]:
        """Samples of n random entries; the generator is on the bank's device."""
        device = self.mean.device
        rows = torch.randint(len(self.mean), (n,), device=device, generator=generator)
        mean = self.mean[rows]
        return mean + self.std[rows] * torch.randn(mean.shape, device=device, generator=generator)


@torch.no_grad()
def encode_bank(
    vae: AutoencoderKL, pictures: Sequence[Tensor] | Dataset, *, batch: int = 8, workers: int = 0
) -> LatentBank:
    """The bank of all pictures ([3 S S] in [0, 1]), in the VAE's precision and on its device."""
    means, stds = [], []
    given: Any = pictures  # a loader takes any sequence
    for images in DataLoader(given, batch_size=batch, num_workers=workers):
        images = images.to(vae.device, vae.dtype)
        posterior = vae.encode(2 * images - 1, return_dict=False)[0]
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    scale = vae.config["scaling_factor"]
    return LatentBank(torch.cat(means) * scale, torch.cat(stds) * scale)
