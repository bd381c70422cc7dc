"""From rendered frames to latents. Images are in [0, 1], channels first: [N 3 H W]; clips are
[B F 3 H W], their frames adjacent where a renderer made them: [B*F H W 3].

The VAE runs in its own precision (autocast off) and the latents come back in float32.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def channels_first(rgb: Float[Tensor, "N H W C"]) -> Float[Tensor, "N 3 H W"]:
    """A renderer's output as images, in float32; anything but three channels is an error."""
    if rgb.shape[-1] != 3:
        raise ValueError(
            f"Guidance got frames of shape {tuple(rgb.shape)}; colours are needed, [N H W 3]."
        )
    return rgb.permute(0, 3, 1, 2).float()


def resize(
    images: Float[Tensor, "N C H W"], height: int, width: int
) -> Float[Tensor, "N C {height} {width}"]:
    """Bilinear; when it shrinks, over all pixels that an output pixel covers (antialias)."""
    shrinks = images.shape[-2] > height or images.shape[-1] > width
    size = (height, width)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=shrinks)


def centre_square(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C S S"]:
    """The largest centred square."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def encode_images(
    vae: AutoencoderKL,
    images: Float[Tensor, "N 3 H W"],
    *,
    mode: bool = False,
    scaled: bool = True,
    chunk: int = 0,
) -> Float[Tensor, "N 4 h w"]:
    """Latents of images: a sample of the posterior (or its `mode`), times the scaling factor.

    chunk: images that keep the encoder's graph at once. The last chunk keeps it, the others are
    encoded again in the backward pass, one after the other; 0 keeps all.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = (2 * images - 1).to(next(vae.parameters()).dtype)  # vae.dtype looks at all of them

        def moments(part: Tensor) -> Tensor:
            return vae.encode(part).latent_dist.parameters

        *again, last = images.split(chunk or max(len(images), 1))
        options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is random here
        parts = [checkpoint(moments, part, **options) for part in again]
        posterior = vae.encode(last).latent_dist
        if parts:
            posterior = type(posterior)(torch.cat([*parts, posterior.parameters]))
        latents = (posterior.mode() if mode else posterior.sample()).float()
        latents = latents.contiguous()  # noise is drawn in memory's order: let it be known
    return latents * vae.config.scaling_factor if scaled else latents


def clip_length(n_frames: int, num_frames: int | None) -> int:
    """Frames of one clip, where `n_frames` of whole clips were rendered; None means one clip."""
    length = n_frames if num_frames is None else num_frames
    if length < 1 or n_frames < 1 or n_frames % length:
        raise ValueError(
            f"{n_frames} frames don't make clips of num_frames={num_frames}: "
            "all frames of one or more clips are needed, one clip after another."
        )
    return length


def random_order(n_clips: int, n_frames: int, device: torch.device) -> Int[Tensor, "B F"]:
    """A random order of each clip's frame indices."""
    return torch.rand(n_clips, n_frames, device=device).argsort(dim=1)


def encode_clips(
    vae: AutoencoderKL, clips: Float[Tensor, "B F 3 H W"], keep_frames: int = -1, chunk: int = 0
) -> Float[Tensor, "B 4 F h w"]:
    """Latents of clips; `keep_frames` random frames of each clip get a gradient, -1: all.

    The others are encoded without, which saves their activations and time. `chunk` saves memory
    too, and all frames have their gradient; see `encode_images`.
    """
    n_clips, n_frames = clips.shape[:2]
    if keep_frames < 0 or keep_frames >= n_frames:
        latents = encode_images(vae, clips.flatten(0, 1), chunk=chunk)
        return latents.unflatten(0, (n_clips, n_frames)).transpose(1, 2)
    order = random_order(n_clips, n_frames, clips.device)
    rows = torch.arange(n_clips, device=clips.device)[:, None]
    kept, rest = order[:, :keep_frames], order[:, keep_frames:]
    latents = encode_images(vae, clips[rows, kept].flatten(0, 1), chunk=chunk)
    with torch.no_grad():
        rest_latents = encode_images(vae, clips[rows, rest].flatten(0, 1), chunk=chunk)
    both = [x.unflatten(0, (n_clips, -1)) for x in (latents, rest_latents)]
    return torch.cat(both, dim=1)[rows, order.argsort(dim=1)].transpose(1, 2)
