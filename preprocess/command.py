"""The command of the room: one photo in, its results beside it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy import ndarray
from PIL import Image

from ..data.subject_share import SMALLEST_SHARE
from ..events import say_error, tell_messages
from ..host.argument_types import finite_number, path, text_with_content, whole_number
from .caption import caption
from .cut_out import REMOVERS, cut_out
from .errors import PreprocessError
from .framing import fit, recentre
from .maps import depth_picture, estimate_depth, estimate_normals, normals_from_depth
from .models import CAPTION_MODEL, DEPTH_MODEL, check_model, optional
from .photo import MIN_SIDE, read_photo
from .results import Results
from .subject import check_not_empty

LARGEST_SIDE = 8192  # pixels, of the results


def preprocess(
    photo: Path,
    *,
    size: int = 512,
    border_ratio: float = 0.2,
    background: str = "auto",
    dont_recenter: bool = False,
    use_existing_background: bool = False,
    need_caption: bool = False,
    depth_model: str | None = None,
    normal_model: str | None = None,
    caption_model: str | None = None,
) -> dict[str, Path]:
    """Writes the files beside the photo; returns the paths of those written, by kind.

    Raises:
        PreprocessError: an unusable input, an option out of range, a named model that can't load.
    """
    if not MIN_SIDE <= size <= LARGEST_SIDE:
        raise PreprocessError(f"--size {size}: from {MIN_SIDE} to {LARGEST_SIDE} pixels.")
    if not 0 <= border_ratio < 1:
        raise PreprocessError(f"--border_ratio {border_ratio}: from 0 (no margin) to under 1.")
    check_model("--depth_model", depth_model)
    check_model("--normal_model", normal_model)
    check_model("--caption_model", caption_model)

    results = Results(photo)
    if use_existing_background:
        rgba = existing_cut_out(photo, results.paths["rgba"])
        mask = subject_mask(rgba)
    else:
        rgba = cut_out(read_photo(photo), background)
        rgba = fit(rgba, size) if dont_recenter else recentre(rgba, size, border_ratio)
        mask = subject_mask(rgba)
        results.save("rgba", rgba)
    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    for kind, picture in depth_and_normals(on_white, mask, depth_model, normal_model):
        results.save(kind, picture)
    if need_caption:
        text = optional("caption", caption, on_white, caption_model, CAPTION_MODEL)
        if text:
            results.save("caption", text)
    return results.written


def existing_cut_out(photo: Path, path: Path) -> Image.Image:
    """The `_rgba.png` that is there already, as it is.

    Raises:
        PreprocessError: the photo or the cut-out isn't there, or it is no cut-out.
    """
    if not photo.is_file():
        raise PreprocessError(f"There is no image at {photo}.")
    if not path.is_file():
        raise PreprocessError(f"--use_existing_background: there is no {path}.")
    rgba = read_photo(path)
    if rgba.mode != "RGBA":
        raise PreprocessError(f"--use_existing_background: {path} has no transparent background.")
    check_not_empty(np.asarray(rgba)[..., 3] / 255)
    return rgba


def subject_mask(rgba: Image.Image) -> Bool[ndarray, "H W"]:
    """Where the subject is.

    Raises:
        PreprocessError: nowhere, or so small that nothing can be learned from it.
    """
    mask = np.asarray(rgba)[..., 3] > 127
    if not mask.any():
        raise PreprocessError("The picture has no opaque pixel: there is no subject.")
    if mask.mean() < SMALLEST_SHARE:
        raise PreprocessError(
            f"Of {rgba.width} x {rgba.height} pixels the subject would cover {mask.sum()}: that is "
            "too few. Lower --border_ratio, or raise --size."
        )
    return mask


def depth_and_normals(
    on_white: Image.Image,
    mask: Bool[ndarray, "H W"],
    depth_model: str | None,
    normal_model: str | None,
) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of depth and normals that can be made, by kind; normals come from depth where
    no model of theirs is named."""
    depth = optional("depth", estimate_depth, on_white, depth_model, DEPTH_MODEL)
    if depth is not None:
        yield "depth", Image.fromarray(depth_picture(depth, mask))
    if normal_model is not None:
        normals = optional("normals", estimate_normals, on_white, normal_model)
    else:
        normals = None if depth is None else normals_from_depth(depth, mask)
    if normals is not None:
        picture = np.where(mask[..., None], 127.5 * (normals + 1), 0).round().astype(np.uint8)
        yield "normal", Image.fromarray(picture)


def model_name(text: str) -> str:
    """A folder, with `~` as a shell reads it, or a name on the hub."""
    return os.path.expanduser(text_with_content(text))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="image_preprocess.py",
        description="A photo -> `_rgba.png`, `_depth.png`, `_normal.png`, `_caption.txt` beside "
        "it.",
    )
    p.add_argument("image", type=path, help="the photo; the results are written beside it")
    p.add_argument(
        "--size",
        type=whole_number(MIN_SIDE, LARGEST_SIDE),
        default=512,
        help="side of the square results in pixels",
    )
    p.add_argument(
        "--border_ratio",
        type=finite_number(0, below=1),
        default=0.2,
        help="share of the side that is margin",
    )
    p.add_argument(
        "--background", choices=["auto", *REMOVERS], default="auto", help="what removes it"
    )
    p.add_argument("--dont_recenter", action="store_true", help="keep the subject where it is")
    p.add_argument(
        "--use_existing_background",
        action="store_true",
        help="keep the _rgba.png that is there, as it is",
    )
    p.add_argument("--need_caption", action="store_true", help="also write _caption.txt")
    p.add_argument(
        "--depth_model", type=model_name, help=f"transformers depth model (default {DEPTH_MODEL})"
    )
    p.add_argument(
        "--normal_model",
        type=model_name,
        help="diffusers normals model; without it normals come from depth",
    )
    p.add_argument("--caption_model", type=model_name, help=f"BLIP model (default {CAPTION_MODEL})")
    return p


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    tell_messages()
    try:
        preprocess(options.pop("image"), **options)
    except PreprocessError as error:
        say_error(error)
        return 1
    return 0
