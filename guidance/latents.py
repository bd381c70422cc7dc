"""Rendered frames on their way to a codec. Images are in [0, 1], channels first: [N 3 H W]; the
frames of clips are adjacent where a renderer made them: [B*F H W 3].
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


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
