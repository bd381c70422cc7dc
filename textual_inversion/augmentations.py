"""Training pictures: image files -> squares on white -> varied copies, [H W 3] float32 in [0, 1].

A copy's randomness follows from (seed, index) alone, so any number of workers makes the same ones.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..preprocess.errors import PreprocessError
from ..preprocess.photo import read_photo

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SLACK = 1.25  # pictures to be warped are kept larger by this: a crop is then not blurred
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


def image_files(path: Path) -> list[Path]:
    """The image itself, or those in a folder; beside a cut-out (*_rgba.png) only cut-outs count.

    Raises:
        FileNotFoundError: no such path, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"--train_data_dir {path} does not exist (working directory: {Path.cwd()}). Give an "
            "image, for instance the _rgba.png of image_preprocess.py, or a folder of images."
        )
    there = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    images = [p for p in there if p.suffix.lower() in SUFFIXES]
    if not images:
        held = ", ".join(p.name for p in there[:5]) or "nothing"
        raise FileNotFoundError(
            f"--train_data_dir {path} has no image (it holds {held}). Give an image, or a folder "
            f"with some ({' '.join(sorted(SUFFIXES))})."
        )
    # depth, normals and the uncut photo lie beside a cut-out
    return [p for p in images if p.name.endswith("_rgba.png")] or images


def square_picture(path: Path, center_crop: bool, side: int) -> Float[ndarray, "{side} {side} 3"]:
    """An image file upright on white; what isn't square is padded with white, or cropped.

    Raises:
        ValueError: the file is missing or no image.
    """
    try:
        image = read_photo(path)
    except PreprocessError as error:
        raise ValueError(str(error)) from error
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    length = (min if center_crop else max)(image.size)
    left, top = (image.width - length) // 2, (image.height - length) // 2
    square = Image.new("RGB", (length, length), "white")
    square.paste(image, (-left, -top))
    resized = square.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255


def warp(
    picture: Float[ndarray, "W W 3"],
    size: int,
    angle: float,
    zoom: float,
    shift: tuple[float, float],
) -> Float[ndarray, "{size} {size} 3"]:
    """The picture seen through a turned window (angle in radians), sampled once.

    A window of zoom 1 is the largest that its turn leaves filled; above 1 it reaches over the
    border, which is continued outwards. `shift` in [-1, 1]^2 moves it within what zoom leaves.
    """
    width = len(picture)
    cos, sin = math.cos(angle), math.sin(angle)
    scale = width * zoom / (abs(cos) + abs(sin)) / size  # source pixels an output pixel
    linear = scale * np.array([[cos, -sin], [sin, cos]])
    centre = width / 2 + np.array(shift) * abs(1 - zoom) * width / 2
    offset = centre - 0.5 - linear @ np.full(2, (size - 1) / 2)
    matrix = np.hstack([linear, offset[:, None]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(
        picture, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return out.clip(0, 1)


def colour_jitter(
    picture: Float[ndarray, "H W 3"], strength: float, dice: np.random.Generator
) -> Float[ndarray, "H W 3"]:
    """Brightness, contrast and saturation times 1 +- strength, hue +- strength of a full turn."""
    brightness, contrast, saturation = dice.uniform(1 - strength, 1 + strength, 3).astype("f4")
    x = (picture * brightness).clip(0, 1)
    mean = (x @ GREY).mean()
    x = (mean + contrast * (x - mean)).clip(0, 1)
    grey = (x @ GREY)[..., None]
    x = (grey + saturation * (x - grey)).clip(0, 1)
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + dice.uniform(-strength, strength) * 360) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def augment(
    picture: Float[ndarray, "W W 3"], size: int, dice: np.random.Generator
) -> Float[ndarray, "{size} {size} 3"]:
    """A varied copy. The original's settings: rotation within 10 degrees (p 0.75), zoom 0.85..1.15,
    colour jitter 0.04 (p 0.75), grey (p 0.1), blur (p 0.1), flip (p 0.5).
    """
    angle = math.radians(dice.uniform(-10, 10)) if dice.random() < 0.75 else 0.0
    x = warp(picture, size, angle, dice.uniform(0.85, 1.15), tuple(dice.uniform(-1, 1, 2)))
    if dice.random() < 0.75:
        x = colour_jitter(x, 0.04, dice)
    if dice.random() < 0.1:
        x = np.repeat((x @ GREY)[..., None], 3, axis=-1)
    if dice.random() < 0.1:
        x = cv2.GaussianBlur(x, (0, 0), dice.uniform(0.1, 2) * size / 512)  # pixels at 512
    if dice.random() < 0.5:
        x = x[:, ::-1]
    return np.ascontiguousarray(x.clip(0, 1), np.float32)


class TrainingPictures(Dataset):
    """`repeats` augmented copies of each picture; if not augmented, it and its mirror image."""

    def __init__(
        self,
        files: list[Path],
        size: int,
        *,
        center_crop: bool,
        augmented: bool,
        repeats: int,
        seed: int,
    ):
        side = round(SLACK * size) if augmented else size
        self.pictures = [square_picture(file, center_crop, side) for file in files]
        self.size, self.seed, self.augmented = size, seed, augmented
        self.copies = repeats if augmented else 2

    def __len__(self) -> int:
        return len(self.pictures) * self.copies

    def __getitem__(self, index: int) -> Float[Tensor, "3 S S"]:
        picture = self.pictures[index % len(self.pictures)]
        if self.augmented:
            picture = augment(picture, self.size, np.random.default_rng((self.seed, index)))
        elif index >= len(self.pictures):
            picture = picture[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
