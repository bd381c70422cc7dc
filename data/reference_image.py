"""The reference image: the one picture that a scene is made from. RGBA file -> colour on white and
mask. Colours are weighted with alpha while resizing, so that whatever hides under the transparent
pixels doesn't bleed into the subject's border.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ..git_lfs import refuse_pointer
from .subject_share import LARGEST_SHARE, SMALLEST_SHARE

MASK_THRESHOLD = 0.5  # of alpha; above it a pixel belongs to the subject

NO_ALPHA = (
    "{path} has no alpha channel ({mode}), so nothing says what is subject and what is background. "
    "Run `python image_preprocess.py {path}` and give the _rgba.png that it writes, or give an "
    "RGBA PNG of your own."
)
ALL_OPAQUE = (
    "{share:.4g} % of {path} is opaque, so its alpha doesn't say what is subject and what is "
    "background; it would be learned as a slab. Run `python image_preprocess.py {path}` and give "
    "the _rgba.png that it writes. If the subject does fill the picture, leave a transparent "
    "margin round it."
)
NEARLY_EMPTY = (
    "The mask of {path} is nearly empty: {pixels} of its pixels ({share:.2g} %) have alpha above "
    "{threshold}. The background's removal took the subject too, or the subject is tiny: cut it "
    "out again, or crop the picture closer to it."
)


def load_rgba(path: str | Path) -> Float[Tensor, "H W 4"]:
    """Straight RGBA in [0, 1] of an image file with transparency, upright (EXIF).

    Raises:
        FileNotFoundError: no file; ValueError: it can't be read, has no alpha, or an alpha that
            is no cut-out's: opaque everywhere, or nearly nowhere.
    """
    if not str(path):
        raise ValueError(
            "No reference image is given: pass data.image.image_path=<an RGBA image>, for instance "
            "the _rgba.png that `python image_preprocess.py <photo>` writes."
        )
    if not Path(path).is_file():
        kind = "is a folder, not an image file" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The reference image {path} {kind} (working directory: {Path.cwd()}). "
            "Pass data.image.image_path=<an RGBA image>."
        )
    try:
        refuse_pointer(path)
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"The reference image {path} can't be read: {error}. Is it a whole image file? "
            "An RGBA PNG will do."
        ) from error
    # palettes and colour keys have it in `info`
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        raise ValueError(NO_ALPHA.format(path=path, mode=image.mode))
    rgba = torch.from_numpy(np.array(image.convert("RGBA"))).float() / 255
    mask = rgba[..., 3] > MASK_THRESHOLD
    share = mask.float().mean().item()
    if share > LARGEST_SHARE:
        raise ValueError(ALL_OPAQUE.format(path=path, share=100 * share))
    if 0 < share < SMALLEST_SHARE:
        raise ValueError(
            NEARLY_EMPTY.format(
                path=path, pixels=int(mask.sum()), share=100 * share, threshold=MASK_THRESHOLD
            )
        )
    if share == 0:
        raise ValueError(
            f"The mask of {path} is empty: no pixel's alpha is above {MASK_THRESHOLD}. "
            "The background's removal took the subject too; try image_preprocess.py with another "
            "photo, or give an RGBA PNG in which the subject is opaque."
        )
    return rgba


def pad_to_aspect(
    rgba: Float[Tensor, "H W 4"], height: int, width: int
) -> Float[Tensor, "H2 W2 4"]:
    """Transparent margins, the same on both sides, that bring the image to height : width."""
    h, w = rgba.shape[:2]
    extra_h = max(0, round(w * height / width) - h)
    extra_w = max(0, round(h * width / height) - w)
    left, top = extra_w // 2, extra_h // 2
    return F.pad(rgba, (0, 0, left, extra_w - left, top, extra_h - top))


def resize(rgba: Float[Tensor, "H W 4"], height: int, width: int) -> Float[Tensor, "H2 W2 4"]:
    """Straight RGBA resized with antialiasing; colours are weighted by their alpha."""
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)
    resized = F.interpolate(
        premultiplied.permute(2, 0, 1)[None],
        (height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    rgb, alpha = resized[0].permute(1, 2, 0).clamp(0, 1).split([3, 1], dim=-1)
    return torch.cat([(rgb / alpha.clamp(min=1e-6)).clamp(0, 1), alpha], dim=-1)


def on_white(rgba: Float[Tensor, "H W 4"]) -> Float[Tensor, "H W 3"]:
    """Straight RGBA over a white background."""
    rgb, alpha = rgba.split([3, 1], dim=-1)
    return rgb * alpha + (1 - alpha)


def reference(
    path: str | Path, height: int, width: int
) -> tuple[Float[Tensor, "{height} {width} 3"], Float[Tensor, "{height} {width} 1"]]:
    """The image as the reference camera sees it: colour on white, and mask (alpha > 0.5) as 0 or 1.

    An image of another aspect is centred, never stretched or cropped.
    """
    rgba = resize(pad_to_aspect(load_rgba(path), height, width), height, width)
    mask = (rgba[..., 3:] > MASK_THRESHOLD).float()
    if not mask.any():
        raise ValueError(
            f"The subject of {path} is so thin that its mask is empty at {height} x {width}: "
            "raise data.image.height and data.image.width, or crop the image closer."
        )
    return on_white(rgba), mask


def reference_on_white(path: str | Path, size: int) -> Float[Tensor, "1 3 {size} {size}"]:
    """The image on white as a square picture for a model (Zero123's condition)."""
    rgba = resize(pad_to_aspect(load_rgba(path), size, size), size, size)
    return on_white(rgba).permute(2, 0, 1)[None]
