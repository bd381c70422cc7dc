"""A cut-out in a square: in its middle, or where it was. Colours count as much as their alpha."""

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image

from .errors import PreprocessError


def recentre(rgba: Image.Image, size: int, border_ratio: float) -> Image.Image:
    """The subject in the middle of size x size pixels, `border_ratio` of a side being margin.

    Raises:
        PreprocessError: no opaque pixel.
    """
    box = rgba.getchannel("A").point([255 * (a > 12) for a in range(256)]).getbbox()
    if box is None:
        raise PreprocessError(
            "The picture is transparent everywhere: there is no subject to recentre."
        )
    subject = premultiplied(rgba.crop(box))
    scale = size * (1 - border_ratio) / max(subject.shape[:2])
    height, width = (max(1, round(scale * side)) for side in subject.shape[:2])
    resized = np.dstack(
        [
            np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS))
            for channel in np.moveaxis(subject, -1, 0)
        ]
    )
    canvas = np.zeros((size, size, 4), np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = resized
    return straight(canvas)


def fit(rgba: Image.Image, size: int) -> Image.Image:
    """The whole picture, padded with transparency to a square and resized to size x size."""
    side = max(rgba.size)
    square = Image.new("RGBA", (side, side))
    square.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    channels = np.moveaxis(premultiplied(square), -1, 0)
    resized = [
        np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.LANCZOS))
        for c in channels
    ]
    return straight(np.dstack(resized))


def premultiplied(rgba: Image.Image) -> Float32[ndarray, "H W 4"]:
    """In [0, 255], with colour times alpha, the form in which pictures may be resized."""
    values = np.asarray(rgba, np.float32)
    return np.concatenate([values[..., :3] * values[..., 3:] / 255, values[..., 3:]], axis=-1)


def straight(values: Float32[ndarray, "H W 4"]) -> Image.Image:
    """The inverse of `premultiplied`."""
    alpha = values[..., 3:].clip(0, 255)
    colour = np.divide(
        values[..., :3] * 255, alpha, out=np.zeros_like(values[..., :3]), where=alpha > 0.5
    )
    return Image.fromarray(
        np.concatenate([colour, alpha], -1).round().clip(0, 255).astype(np.uint8)
    )
