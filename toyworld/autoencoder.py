"""Pictures to scaled latents and back, by the autoencoder that all toy priors share."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .folders import Network


def signed(images: UInt8[Tensor, "N *F 3 S S"]) -> Float[Tensor, "N *F 3 S S"]:
    """Bytes to [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encode(
    vae: Network, images: UInt8[Tensor, "N 3 S S"]
) -> tuple[Float[Tensor, "N 4 h w"], Float[Tensor, "N 4 h w"]]:
    """Means and standard deviations of the posteriors, not scaled."""
    means, stds = [], []
    for part in images.split(512):
        posterior = vae.encode(signed(part)).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


def latents(vae: Network, images: UInt8[Tensor, "N 3 S S"]) -> Callable[[Tensor], Tensor]:
    """A function of an index that draws scaled latents of those pictures."""
    mean, std = encode(vae, images)
    scale = vae.config.scaling_factor

    def draw(rows: Tensor) -> Tensor:
        return scale * (mean[rows] + std[rows] * torch.randn_like(mean[rows]))

    return draw


@torch.no_grad()
def decode(vae: Network, z: Float[Tensor, "N 4 h w"]) -> Float[Tensor, "N 3 S S"]:
    """Pictures in [0, 1] of scaled latents."""
    parts = [vae.decode(part / vae.config.scaling_factor).sample for part in z.split(256)]
    return (torch.cat(parts).clamp(-1, 1) + 1) / 2
