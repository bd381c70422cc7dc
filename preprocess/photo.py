"""A photo as it is read: upright, 8 bit, RGB, or RGBA if it really has transparency.

Images are RGB(A) in [0, 255] uint8; alpha is [H W] in [0, 1].
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..data.subject_share import LARGEST_SHARE
from ..git_lfs import refuse_pointer
from .errors import PreprocessError, first_line

MIN_SIDE = 16  # pixels; below this there is nothing to cut out
WORKING_SIDE = 2048  # pixels; larger photos are reduced to this before anything else


def read_photo(path: Path, longest: int = WORKING_SIDE) -> Image.Image:
    """The photo upright (EXIF), 8 bit, as RGB, or RGBA if it really has transparency.

    It is reduced to `longest` pixels first, so that a huge one takes little time and memory.

    Raises:
        PreprocessError: no such file, a folder, unreadable, tiny, or too large to be read safely.
    """
    if path.is_dir():
        raise PreprocessError(f"{path} is a folder. Pass the path of one photo (jpg, png, webp).")
    if not path.is_file():
        raise PreprocessError(
            f"There is no image at {path}. Pass the path of a photo (jpg, png, webp)."
        )
    try:
        refuse_pointer(path)
    except (ValueError, OSError) as error:
        raise PreprocessError(str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is reduced below
            file = Image.open(path)
        size = file.size
        image = eight_bit(upright(file, longest))
    except Image.DecompressionBombError as error:
        raise PreprocessError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels. "
            f"Reduce it first; {longest} a side are used."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what PIL's readers raise
        raise PreprocessError(
            f"{path} can't be read as an image ({first_line(error)}). Re-save it as PNG."
        ) from error
    if min(image.size) < MIN_SIDE:
        raise PreprocessError(
            f"{path} is {size[0]} x {size[1]} pixels; {MIN_SIDE} a side is the least"
            + ("." if min(size) < MIN_SIDE else f", also once the longer side is {longest}.")
        )
    return image


def upright(file: Image.Image, longest: int) -> Image.Image:
    """The picture with sides of at most `longest`, turned as EXIF says; deep modes stay deep."""
    file.draft(None, (2 * longest, 2 * longest))  # a huge JPEG is decoded small; no-op for others
    file.load()
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)  # TIFFs are turned by now
    image = file
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode in ("1", "P", "PA") or "transparency" in image.info:  # can't be averaged
        clear = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def eight_bit(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something is transparent; PIL's own convert() clips 16 bit and float."""
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode == "I" else max(values.max(), 1e-12)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if "A" not in image.getbands():
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    opaque = (alpha > 127).mean()
    if opaque <= LARGEST_SHARE:
        return image
    if alpha.min() < alpha.max():  # rounded corners, say: there's no cut-out yet
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info["opaque"] = opaque  # what `cut_out` says
    return image
