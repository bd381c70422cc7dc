"""The background's removal, by the programs that are installed."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from ..data.subject_share import LARGEST_SHARE, SMALLEST_SHARE
from ..events import say
from .errors import PreprocessError, first_line
from .grabcut import grabcut
from .photo import read_photo
from .subject import BY_HAND, check_not_empty, coverage


def by_rembg(rgb: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "H W"]:
    """Alpha by rembg with U^2-Net (its default model differs between versions)."""
    if importlib.util.find_spec("onnxruntime") is None:  # importing rembg would end the process
        raise ImportError("it needs onnxruntime, `pip install 'rembg[cpu]'`")
    import rembg  # pyright: ignore[reportMissingImports] (not of our packages)

    mask = rembg.remove(Image.fromarray(rgb), session=rembg.new_session("u2net"), only_mask=True)
    return np.asarray(mask.convert("L"), np.float32) / 255


def by_backgroundremover(rgb: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "H W"]:
    """Alpha by the backgroundremover package (U^2-Net)."""
    from backgroundremover.bg import remove  # pyright: ignore[reportMissingImports] (likewise)

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    cut = Image.open(io.BytesIO(remove(buffer.getvalue(), model_name="u2net")))
    return np.asarray(cut.convert("RGBA"), np.float32)[..., 3] / 255


REMOVERS: dict[str, Callable[[ndarray], ndarray]] = {  # in the order of "auto"
    "backgroundremover": by_backgroundremover,
    "rembg": by_rembg,
    "grabcut": grabcut,
}
PACKAGES = {"backgroundremover": "backgroundremover", "rembg": "rembg[cpu]"}  # what pip is told


def cut_out(image: Image.Image, background: str = "auto") -> Image.Image:
    """RGBA with the background removed; a photo that is transparent already keeps its alpha.

    `auto` takes the first remover that is installed and finds a subject.

    Raises:
        PreprocessError: nothing was found, the remover that was asked for can't run, or next to
            nothing of a transparent photo is opaque.
    """
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A")) / 255
        check_not_empty(alpha)
        say(f"background: the picture is cut out already; {coverage(alpha)}")
        return image
    if "opaque" in image.info:
        share = 100 * image.info["opaque"]
        say(f"background: {share:.0f} % of the picture is opaque, so its alpha is left out")
    rgb = np.asarray(image)
    installed = [n for n in REMOVERS if n not in PACKAGES or importlib.util.find_spec(n)]
    names = installed if background == "auto" else [background]
    for name in names:
        try:
            alpha = subject_alpha(rgb, name)
        except PreprocessError as error:
            if name == names[-1]:
                raise PreprocessError(
                    f"{error}. Try another --background ({', '.join(REMOVERS)}), a plainer photo, "
                    f"or {BY_HAND}."
                ) from error
            say(f"background: {error}; trying the next")
            continue
        say(f"background: removed by {name}; {coverage(alpha)}")
        return Image.fromarray(np.dstack([rgb, (alpha * 255).round().astype(np.uint8)]))
    raise AssertionError("GrabCut is always installed")


def subject_alpha(rgb: UInt8[ndarray, "H W 3"], name: str) -> Float[ndarray, "H W"]:
    """Alpha by the remover of that name.

    Raises:
        PreprocessError: it isn't installed, fails (no weights, usually), or finds no subject.
    """
    if name in PACKAGES and importlib.util.find_spec(name) is None:
        raise PreprocessError(f"{name} isn't installed: pip install '{PACKAGES[name]}'")
    try:
        alpha = REMOVERS[name](rgb)
    except Exception as error:  # the packages' own, pickle's and onnxruntime's errors
        raise PreprocessError(f"{name} can't run here: {first_line(error)}") from error
    share = float((alpha > 0.5).mean())
    if not SMALLEST_SHARE < share < LARGEST_SHARE:
        found = "found no subject" if share <= SMALLEST_SHARE else "found no background"
        raise PreprocessError(f"{name} {found} (it took {100 * share:.1f} % of the picture)")
    return alpha


def check_photo(path: Path) -> None:
    """A PreprocessError for what can be known of a photo before anything is cut out."""
    photo = read_photo(path)
    if photo.mode == "RGBA":
        alpha = np.asarray(photo)[..., 3] / 255
        if not (alpha > 0.5).any():
            raise PreprocessError(f"{path} has no opaque pixel: there is no subject.")
        try:
            check_not_empty(alpha)
        except PreprocessError as error:
            raise PreprocessError(f"{path}: {error}") from None
