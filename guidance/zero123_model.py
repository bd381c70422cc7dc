"""The parts of Zero123 (Liu et al. 2023) that no library has: its projection layer, the camera
numbers that go in, and CLIP's view of the reference image.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from ..files.json_files import read_json


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


class ClipSettings(NamedTuple):
    """How CLIP wants its pictures."""

    side: int  # pixels
    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]


def read_clip_settings(path: Path) -> ClipSettings:
    """From a feature extractor's preprocessor_config.json.

    Raises:
        FileNotFoundError: no such file; ValueError: it is damaged, or lacks a number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Was the download cut off?")
    held = read_json(path)
    try:
        size = held["crop_size"]  # a number in older files
        side = int(size["height"] if isinstance(size, dict) else size)
        mean, std = (tuple(float(v) for v in held[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        side, mean, std, problem = 0, (), (), error
    else:
        problem = f"they are {size}, {mean} and {std}"
    if side < 1 or len(mean) != 3 or len(std) != 3 or not all(0 < v < math.inf for v in std):
        raise ValueError(
            f"{path} doesn't say how CLIP wants its pictures (crop_size, image_mean, image_std): "
            f"{problem}. Take another copy of it."
        )
    return ClipSettings(side, mean, std)


def clip_pixels(
    image: Float[Tensor, "B 3 S S"], settings: ClipSettings
) -> Float[Tensor, "B 3 P P"]:
    """Square images in [0, 1] as CLIP wants them."""
    options = {"mode": "bicubic", "align_corners": False, "antialias": True}
    pixels = F.interpolate(image, (settings.side, settings.side), **options).clamp(0, 1)
    mean, std = (image.new_tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    return (pixels - mean) / std
