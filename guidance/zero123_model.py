"""The parts of Zero123 (Liu et al. 2023) that no library has: its projection layer, the camera
numbers that go in, and CLIP's view of the reference image.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn


class CLIPCameraProjection(ModelMixin, ConfigMixin):
    """Zero123's layer from (image embedding, camera offset) to one token: weights `proj.*`."""

    @register_to_config
    def __init__(self, embedding_dim: int = 768, additional_embeddings: int = 4):
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)


def camera_offset(
    elevation: Float[Tensor, " B"],
    azimuth: Float[Tensor, " B"],
    distance: Float[Tensor, " B"],
    reference: tuple[float, float, float],
) -> Float[Tensor, "B 4"]:
    """[reference's elevation - elevation (rad), sin and cos of azimuth - its, distance - its].

    `elevation`, `azimuth` and the first two of `reference` are in degrees.
    """
    turn = torch.deg2rad(azimuth - reference[1])
    fall = torch.deg2rad(reference[0] - elevation)
    return torch.stack([fall, turn.sin(), turn.cos(), distance - reference[2]], dim=-1)


def clip_pixels(image: Float[Tensor, "1 3 S S"], settings: dict) -> Float[Tensor, "1 3 P P"]:
    """A square image in [0, 1] as CLIP wants it, from the numbers of preprocessor_config.json."""
    size = settings["crop_size"]  # a number in older files
    side = size["height"] if isinstance(size, dict) else size
    options = {"mode": "bicubic", "align_corners": False, "antialias": True}
    pixels = F.interpolate(image, (side, side), **options).clamp(0, 1)
    mean, std = (image.new_tensor(settings[k])[:, None, None] for k in ("image_mean", "image_std"))
    return (pixels - mean) / std
