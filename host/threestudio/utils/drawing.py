"""Arrays as pictures and videos. Pictures are BGR uint8 [H W 3], which is what OpenCV writes.

OpenCV, imageio, matplotlib and Pillow are imported when they are first needed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Range = tuple[float, float] | None  # what becomes black and white; None takes the array's own


def to_unit(img: np.ndarray, data_range: Range) -> np.ndarray:
    """The range mapped to [0, 1] and clipped."""
    low, high = (img.min(), img.max()) if data_range is None else data_range
    if high <= low:
        return np.zeros_like(img, dtype=np.float32)
    return ((img - low) / (high - low)).clip(0, 1)


def to_bytes(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * 255).astype(np.uint8)


def channels_last(img: np.ndarray, data_format: str) -> np.ndarray:
    if data_format not in ("CHW", "HWC"):
        raise ValueError(f"data_format should be 'CHW' or 'HWC', not {data_format!r}.")
    return img.transpose(1, 2, 0) if data_format == "CHW" else img


def rgb(img: np.ndarray, data_format: str, data_range: Range, rgba: bool = False) -> np.ndarray:
    """Channels in threes (fours: rgba), side by side; a last group is filled with zeros."""
    import cv2

    img = channels_last(img, data_format)
    if img.dtype != np.uint8:
        img = to_bytes(to_unit(img.astype(np.float32), data_range))
    group = 4 if rgba else 3
    img = np.pad(img, ((0, 0), (0, 0), (0, -img.shape[-1] % group)))
    img = np.concatenate(np.split(img, img.shape[-1] // group, axis=-1), axis=1)
    return cv2.cvtColor(img, cv2.COLOR_RGBA2BGRA if rgba else cv2.COLOR_RGB2BGR)


def uv(img: np.ndarray, data_format: str, data_range: Range, cmap: str) -> np.ndarray:
    """Two channels as red and green (`color`), or as a checkerboard of white and magenta."""
    unit = to_unit(channels_last(img, data_format).astype(np.float32), data_range)
    if cmap == "color":
        blue = np.zeros_like(unit[..., :1])
        return to_bytes(np.concatenate([blue, unit[..., 1:2], unit[..., 0:1]], axis=-1))
    if cmap == "checkerboard":
        magenta = (unit[..., :2] * 64).astype(int).sum(-1) % 2 == 0
        return np.where(magenta[..., None], [255, 0, 255], [255, 255, 255]).astype(np.uint8)
    raise ValueError(f"cmap should be 'checkerboard' or 'color', not {cmap!r}.")


def grayscale(img: np.ndarray, data_range: Range, cmap: str | None) -> np.ndarray:
    """One channel [H W] in a colour map: None (grey), jet, magma (dark is far) or spectral."""
    import cv2

    unit = to_unit(np.nan_to_num(img.astype(np.float32)), data_range)
    if cmap is None:
        return np.repeat(to_bytes(unit)[..., None], 3, axis=-1)
    if cmap == "jet":
        return cv2.applyColorMap(to_bytes(unit), cv2.COLORMAP_JET)
    if cmap in ("magma", "spectral"):
        from matplotlib import colormaps

        colours = colormaps["magma"](1 - unit) if cmap == "magma" else colormaps["Spectral"](unit)
        return to_bytes(colours[..., 2::-1])
    raise ValueError(f"cmap should be None, 'jet', 'magma' or 'spectral', not {cmap!r}.")


def beside(pictures: Sequence[np.ndarray], align: str | int | tuple[int, int]) -> np.ndarray:
    """Pictures in a row, resized to one size.

    align: the largest or smallest of their sizes (max, min), a size, or (height, width).
    """
    import cv2

    sizes = [picture.shape[:2] for picture in pictures]
    if isinstance(align, int):
        h, w = align, align
    elif isinstance(align, tuple) and len(align) == 2:
        h, w = align
    elif align in ("max", "min"):
        pick = max if align == "max" else min
        h, w = pick(size[0] for size in sizes), pick(size[1] for size in sizes)
    else:
        raise ValueError(f"align should be 'max', 'min', a size or (height, width), not {align!r}.")
    row = [
        picture if size == (h, w) else cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
        for picture, size in zip(pictures, sizes, strict=True)
    ]
    return np.concatenate(row, axis=1)


def with_texts(bgr: np.ndarray, texts: Sequence[object]) -> np.ndarray:
    """Texts written on a picture, evenly from top to bottom."""
    from PIL import Image, ImageDraw

    img = Image.fromarray(bgr)
    draw = ImageDraw.Draw(img)
    for i, text in enumerate(texts):
        at = (2, img.size[1] // len(texts) * i)
        draw.text(at, f"{text}", fill=(0, 0, 0), stroke_width=1, stroke_fill=(255, 255, 255))
    return np.asarray(img)


def read_rgb(path: str) -> np.ndarray:
    """
    Raises:
        OSError: no picture can be read there.
    """
    import cv2

    bgr = cv2.imread(path)
    if bgr is None:
        raise OSError(f"Cannot read the picture {path!r}.")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def write_video(path: str, pictures: Iterable[str], fps: float) -> None:
    """A .gif or .mp4 of picture files."""
    import imageio

    frames: list[Any] = [read_rgb(picture) for picture in pictures]
    if path.endswith(".gif"):
        imageio.mimsave(path, frames, duration=1000 / fps, loop=0)
    else:
        # H.264 wants even sizes; imageio would otherwise rescale to multiples of 16
        even = [(0, frames[0].shape[0] % 2), (0, frames[0].shape[1] % 2), (0, 0)]
        frames = [np.pad(frame, even, mode="edge") for frame in frames]
        imageio.mimsave(path, frames, fps=fps, macro_block_size=1)
