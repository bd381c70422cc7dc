"""Clips to normalised latents and back, by the flow prior's causal video VAE."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .autoencoder import signed
from .folders import Network


@torch.no_grad()
def clip_moments(
    vae: Network, clips: UInt8[Tensor, "N F 3 S S"]
) -> tuple[Float[Tensor, "N C f h w"], Float[Tensor, "N C f h w"]]:
    """Means and standard deviations of the posteriors, not normalised."""
    means, stds = [], []
    for part in clips.split(64):
        posterior = vae.encode(signed(part).transpose(1, 2)).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


class ClipCoder:
    """A video VAE with the mean and deviation that it states of its latents' channels."""

    def __init__(self, vae: Network) -> None:
        self.vae = vae
        stated = vae.config.latents_mean, vae.config.latents_std
        # made here: a graph can't copy them in
        self.mean, self.std = (
            torch.tensor(values, device=vae.device)[:, None, None, None] for values in stated
        )

    def normalised(self, z: Float[Tensor, "N C f h w"]) -> Float[Tensor, "N C f h w"]:
        return (z - self.mean) / self.std

    def latents(self, clips: UInt8[Tensor, "N F 3 S S"]) -> Callable[[Tensor], Tensor]:
        """A function of an index that draws latents [B C f h w] of those clips."""
        means, stds = clip_moments(self.vae, clips)
        means, stds = self.normalised(means), stds / self.std

        def draw(rows: Tensor) -> Tensor:
            return means[rows] + stds[rows] * torch.randn_like(means[rows])

        return draw

    @torch.no_grad()
    def first(self, images: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N C 1 h w"]:
        """What the transformer is shown of clips' first frames: the posterior's mode."""
        return self.normalised(self.vae.encode(2 * images[:, :, None] - 1).latent_dist.mode())

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "N C f h w"]) -> Float[Tensor, "N F 3 S S"]:
        """Clips in [0, 1]."""
        parts = [self.vae.decode(part * self.std + self.mean).sample for part in z.split(16)]
        return (torch.cat(parts).transpose(1, 2) + 1) / 2
