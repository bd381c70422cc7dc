"""Codecs: rendered frames to a prior's latents, with their gradient. Pixels are in [0, 1], channels
first: images [N 3 H W], clips [B F 3 H W].

An image VAE takes a clip frame by frame; a causal video VAE takes it whole, n(k) = k m + 1 frames
for k + 1 latent frames, m its temporal factor. A VAE runs in its own precision (autocast off) and
the latents come back in float32.
"""

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .frozen_wan_vae import moments
from .latents import random_order
from .speed import RecordedEncoder

PIXELS = 2**20  # of images that go through a VAE beside each other, where there are more
LARGEST = 8  # log2 of the largest gradient of latents that goes into one; float16 ends at 2^16


class Codec(Protocol):
    """What all ways to latents have; an image VAE takes single pictures as well."""

    vae: Any
    channels: int  # of latents

    def encode_clips(self, clips: Float[Tensor, "B F 3 H W"]) -> Float[Tensor, "B C f h w"]:
        """A sample of the posterior, scaled."""
        ...

    def decode_clips(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B F 3 H W"]:
        """Clips of such latents, without a graph."""
        ...

    def check_size(self, **sizes: int) -> None:
        """A ValueError for a size in pixels, by its name, that the VAE can't take."""


def check_multiples(factor: int, sizes: dict[str, int]) -> None:
    """A ValueError for a size in pixels that the VAE can't divide by `factor`."""
    for name, size in sizes.items():
        if size <= 0 or size % factor:
            raise ValueError(
                f"{name} is {size}, but this VAE needs a multiple of {factor}, "
                f"for instance {max(round(size / factor), 1) * factor}."
            )


def check_frames(n_frames: int, factor: int) -> None:
    """A ValueError for clips that a causal video VAE can't encode whole; factor: in time."""
    rest = (n_frames - 1) % factor
    if n_frames < 1 or rest:
        low = max(1, n_frames - rest)
        raise ValueError(
            f"Clips have {n_frames} frames, but this video VAE encodes 1, {factor + 1}, "
            f"{2 * factor + 1}, ... of them: take data.single_view.num_frames={low} or "
            f"{low + factor}."
        )


def halvings(vae: Any) -> int:
    """Pixels a latent: the VAE halves an image once after each block but the last."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def keep_in_range(pixels: Float[Tensor, " N *s"], latents: Float[Tensor, " M *S"]) -> None:
    """Brings the gradient on its way from these latents to the pixels that they were made of into
    the middle of float16's range, by a power of two, which rounds nothing, and takes that out of
    the pixels': how large it is beside others depends on weights that nobody has applied yet."""
    factors: list[Tensor] = []

    def into(grad: Tensor) -> Tensor:
        exponent = torch.frexp(grad.abs().amax().float())[1]  # the largest is below 2^exponent
        factors[:] = [torch.exp2(LARGEST - exponent.clamp(-100, 100).float()).to(grad)]
        return grad * factors[0]

    if latents.requires_grad:
        latents.register_hook(into)
        pixels.register_hook(lambda grad: grad / factors[0])


class ImageCodec:
    """An image VAE (AutoencoderKL).

    chunk: images that keep the encoder's graph at once. The last chunk keeps it, the others are
        encoded again in the backward pass, one after the other; 0 keeps all.
    pixels: of images that go through the encoder beside each other, where there are more.
    """

    pixels = PIXELS

    def __init__(self, vae: Any, chunk: int = 0):
        self.vae = vae
        self.chunk = chunk
        self.channels = vae.config.latent_channels
        self.pixel_factor = halvings(vae)

    def check_size(self, **sizes: int) -> None:
        check_multiples(self.pixel_factor, sizes)

    def record(self, name: str) -> None:
        """The encoder as CUDA graphs, called `name` in what is said of it (speed.py)."""
        if self.chunk == 0:  # checkpoints can't be recorded
            encoder = self.vae.encoder
            encoder.forward = RecordedEncoder(encoder.forward, name)

    def beside(self, images: Float[Tensor, "N C H W"]) -> tuple[Float[Tensor, "_ C H W"], ...]:
        """As many at a time as fill a GPU, and its memory no more than that."""
        return images.split(max(1, self.pixels // images.shape[-2:].numel()))

    def noise(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        """The unit noise that a sample of their posterior takes, as diffusers draws it."""
        n, _, *size = images.shape
        shape = (n, self.channels, *(side // self.pixel_factor for side in size))
        dtype = next(self.vae.parameters()).dtype
        return torch.randn(shape, dtype=dtype, device=images.device)

    def encode(
        self,
        images: Float[Tensor, "N 3 H W"],
        *,
        mode: bool = False,
        scaled: bool = True,
        noise: Float[Tensor, "N C h w"] | None = None,
    ) -> Float[Tensor, "N C h w"]:
        """A sample of the posterior (or its `mode`), times the scaling factor.

        noise: that `noise` has drawn; None draws it here.
        """
        vae = self.vae
        with torch.autocast(images.device.type, enabled=False):
            pixels = 2 * images - 1
            seen = pixels.to(next(vae.parameters()).dtype)  # vae.dtype asks all of them

            def moments(part: Tensor) -> Tensor:
                return vae.encode(part).latent_dist.parameters

            *again, last = seen.split(self.chunk or max(len(seen), 1))
            # nothing is random
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            parts = [checkpoint(moments, part, **options) for part in again]
            *kept, posterior = [vae.encode(part).latent_dist for part in self.beside(last)]
            parts += [part.parameters for part in kept]
            if parts:
                posterior = type(posterior)(torch.cat([*parts, posterior.parameters]))
            if noise is not None:
                latents = posterior.mean + posterior.std * noise
            else:
                latents = posterior.mode() if mode else posterior.sample()
            # further noise is drawn in memory's order: let it be known
            latents = latents.float().contiguous()
            keep_in_range(pixels, latents)
        return latents * vae.config.scaling_factor if scaled else latents

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "N C h w"]) -> Float[Tensor, "N 3 H W"]:
        """Pictures of scaled latents, without a graph."""
        vae = self.vae
        with torch.autocast(latents.device.type, enabled=False):
            latents = (latents / vae.config.scaling_factor).to(next(vae.parameters()).dtype)
            parts = latents.split(self.chunk or len(latents))
            pictures = torch.cat([vae.decode(part).sample.float() for part in parts])
        return (pictures / 2 + 0.5).clamp(0, 1)

    def decode_clips(self, latents: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B F 3 H W"]:
        frames = latents.transpose(1, 2)
        return self.decode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def encode_clips(
        self, clips: Float[Tensor, "B F 3 H W"], keep_frames: int = -1
    ) -> Float[Tensor, "B C F h w"]:
        """Latents of clips; `keep_frames` random frames of each clip get a gradient, -1: all.

        The others are encoded without, which saves their activations and time. `chunk` saves memory
        too, and all frames have their gradient.
        """
        n_clips, n_frames = clips.shape[:2]
        if keep_frames < 0 or keep_frames >= n_frames:
            latents = self.encode(clips.flatten(0, 1))
            return latents.unflatten(0, (n_clips, n_frames)).transpose(1, 2)
        order = random_order(n_clips, n_frames, clips.device)
        rows = torch.arange(n_clips, device=clips.device)[:, None]
        kept, rest = order[:, :keep_frames], order[:, keep_frames:]
        latents = self.encode(clips[rows, kept].flatten(0, 1))
        with torch.no_grad():
            rest_latents = self.encode(clips[rows, rest].flatten(0, 1))
        both = [x.unflatten(0, (n_clips, -1)) for x in (latents, rest_latents)]
        return torch.cat(both, dim=1)[rows, order.argsort(dim=1)].transpose(1, 2)


class CausalVideoCodec:
    """A causal video VAE, whole clips at once: AutoencoderKLWan, -LTXVideo or -CogVideoX.

    Frames behind the last k m + 1 would get no gradient, without a word: other lengths are refused.
    Latents are (z - mean) / std * scaling_factor, as far as the VAE states them.
    """

    def __init__(self, vae: Any):
        self.vae = vae
        self.channels = stated(vae, "z_dim", "latent_channels")
        self.frame_factor = stated(vae, "temporal_compression_ratio", "scale_factor_temporal")
        self.pixel_factor = stated(vae, "spatial_compression_ratio", "scale_factor_spatial")
        if self.pixel_factor is None:
            self.pixel_factor = halvings(vae)
        device = next(vae.parameters()).device
        self.mean = per_channel(stated(vae, "latents_mean"), 0.0).to(device)
        self.std = per_channel(stated(vae, "latents_std"), 1.0).to(device)
        self.scaling_factor = stated(vae, "scaling_factor") or 1.0
        self.denoises = bool(vae.config.get("timestep_conditioning"))

    def check_size(self, **sizes: int) -> None:
        check_multiples(self.pixel_factor, sizes)

    def encode_clips(
        self, clips: Float[Tensor, "B F 3 H W"], *, mode: bool = False
    ) -> Float[Tensor, "B C f h w"]:
        """A sample of the posterior (or its `mode`), normalised."""
        check_frames(clips.shape[1], self.frame_factor)
        with torch.autocast(clips.device.type, enabled=False):
            pixels = (2 * clips - 1).to(next(self.vae.parameters()).dtype).transpose(1, 2)
            posterior = self.posterior(pixels)
            latents = (posterior.mode() if mode else posterior.sample()).float().contiguous()
        return (latents - self.mean) / self.std * self.scaling_factor

    @torch.no_grad()
    def decode_clips(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B F 3 H W"]:
        """Clips of normalised latents, without a graph."""
        n_frames = (latents.shape[2] - 1) * self.frame_factor + 1
        latents = latents / self.scaling_factor * self.std + self.mean
        # a decoder that also takes noise away (LTX-Video 0.9.1 on) is told that there is none
        noise = {"temb": latents.new_zeros(len(latents))} if self.denoises else {}
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(next(self.vae.parameters()).dtype)
            clips = self.vae.decode(latents, **noise).sample.float().transpose(1, 2)
        # CogVideoX's makes its first frame of an even number of latent ones as often as the others
        return (clips[:, -n_frames:] / 2 + 0.5).clamp(0, 1)

    def posterior(self, pixels: Float[Tensor, "B 3 F H W"]) -> Any:
        """The distribution of latents, of diffusers or like it, of clips in [-1, 1]."""
        return self.vae.encode(pixels).latent_dist


class Posterior(NamedTuple):
    """A Gaussian of latents."""

    mean: Float[Tensor, "B C f h w"]
    log_variance: Float[Tensor, "B C f h w"]

    def mode(self) -> Float[Tensor, "B C f h w"]:
        return self.mean

    def sample(self) -> Float[Tensor, "B C f h w"]:
        std = (self.log_variance.clamp(-30, 20) / 2).exp()
        # of the shape alone: randn_like draws in memory's order
        return self.mean + std * torch.randn(std.shape, dtype=std.dtype, device=std.device)


class WanCodec(CausalVideoCodec):
    """A slim AutoencoderKLWan (frozen_wan_vae.py).

    chunk: frames behind the first that keep the encoder's graph at once. The last ones keep it, the
    others are encoded again in the backward pass; 0 keeps all.
    """

    def __init__(self, vae: Any, chunk: int = 0):
        super().__init__(vae)
        self.chunk = chunk
        if chunk % self.frame_factor:
            raise ValueError(
                f"vae_chunk is {chunk}, but this video VAE takes {self.frame_factor} frames at a "
                f"time behind the first: a multiple of that will do, or 0 for all of a clip."
            )

    def posterior(self, pixels: Float[Tensor, "B 3 F H W"]) -> Posterior:
        # in float32 before noise is drawn: at half precision it would be other, coarser noise
        return Posterior(*moments(self.vae, pixels, self.chunk).float().chunk(2, dim=1))


def stated(vae: Any, *names: str) -> Any:
    """The first of these that the VAE's config, attributes or buffers state; None if none does."""
    held = {**dict(vae.named_buffers()), **vars(vae), **{k: v for k, v in vae.config.items() if v}}
    return next((held[name] for name in names if held.get(name) is not None), None)


def per_channel(values: Any, default: float) -> Float[Tensor, "1 C 1 1 1"]:
    """Numbers of each latent channel, or one for all."""
    values = [default] if values is None else values
    return torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)
