"""Pictures of a run: numpy arrays, colours [H W 3] uint8, depths [H W] float."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from torch import Tensor

from .whole import whole_file

Picture = UInt8[np.ndarray, "H W 3"]


def to_picture(image: Float[Tensor, "H W 3"]) -> Picture:
    """Colours in [0, 1] to bytes, rounded."""
    clean = image.detach().float().nan_to_num().clamp(0, 1)
    return (clean * 255).round().byte().cpu().numpy()


def png(picture: Picture) -> bytes:
    """A whole file's."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def save_png(path: Path, picture: Picture) -> None:
    with whole_file(path) as part:
        part.write_bytes(png(picture))


def surface_depth(
    depth: Float[Tensor, "H W 1"], opacity: Float[Tensor, "H W 1"]
) -> Float[np.ndarray, "H W"]:
    """Distance along the ray where it is more than half opaque, NaN elsewhere.

    A rendered depth is a sum of weight * t: over the opacity it is a mean distance.
    """
    mean = (depth / opacity.clamp_min(1e-6)).masked_fill(opacity <= 0.5, float("nan"))
    return mean[..., 0].detach().float().cpu().numpy()


def depth_range(
    depths: Iterable[Float[np.ndarray, "H W"]], percentiles: tuple[float, float] = (10, 99)
) -> tuple[float, float]:
    """Near and far of a whole video: percentiles over the surface pixels of all its frames."""
    seen = np.concatenate([np.empty(0), *(depth[np.isfinite(depth)] for depth in depths)])
    if seen.size == 0:  # an empty scene
        return 0.0, 1.0
    near, far = np.percentile(seen, percentiles)
    return float(near), float(max(far, near + 1e-6))


def colour_depth(depth: Float[np.ndarray, "H W"], near: float, far: float) -> Picture:
    """Near is red, far is violet, where there is no surface is white."""
    surface = np.isfinite(depth)
    level = np.where(surface, (depth.astype(np.float32) - near) / (far - near), 0).clip(0, 1)
    colours = (colormaps["Spectral"](level)[..., :3] * 255).round().astype(np.uint8)
    return np.where(surface[..., None], colours, np.uint8(255))
