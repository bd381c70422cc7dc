"""Depth and normals of a cut-out.

Depth is relative: 255 nearest, 1 farthest, 0 outside the subject. Normals are in camera axes (x
right, y up, z towards the camera), stored as 127.5 (n + 1).
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

from ..pretrained.offline import only_local


def estimate_depth(rgb: Image.Image, model: str) -> Float[ndarray, "H W"]:
    """Relative inverse depth, larger is nearer, by transformers' depth estimation."""
    options: Any = {"local_files_only": only_local(model), "trust_remote_code": False}
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = AutoImageProcessor.from_pretrained(model, **options)
    network = AutoModelForDepthEstimation.from_pretrained(model, **options).eval()
    with torch.no_grad():
        depth = network(**processor(rgb, return_tensors="pt")).predicted_depth[0].float().numpy()
    kind = getattr(network.config, "depth_estimation_type", None)
    if kind == "metric" or network.config.model_type in ("glpn", "zoedepth"):  # metres
        depth = 1 / depth.clip(1e-3)
    return np.asarray(Image.fromarray(depth).resize(rgb.size, Image.Resampling.BICUBIC))


def depth_picture(
    depth: Float[ndarray, "H W"], mask: Bool[ndarray, "H W"]
) -> UInt8[ndarray, "H W"]:
    """1..255 from farthest to nearest inside the mask, 0 outside."""
    inside = depth[mask]
    near, far = inside.max(), inside.min()
    scaled = 1 + 254 * (depth - far) / max(near - far, 1e-12)
    return np.where(mask, scaled.round(), 0).clip(0, 255).astype(np.uint8)


def normals_from_depth(
    depth: Float[ndarray, "H W"], mask: Bool[ndarray, "H W"], relief: float = 0.5
) -> Float[ndarray, "H W 3"]:
    """Unit normals (x right, y up, z to the camera) of the height field of a depth map.

    Relative depth has no scale: the mask's depth range is taken as `relief` of its width.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    inside = depth[mask]
    height = (depth - inside.min()) / max(np.ptp(inside), 1e-12) * relief * extent
    height = np.where(mask, height, 0).astype(np.float32)
    weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    height = cv2.GaussianBlur(height, (0, 0), 1.5) / np.maximum(weight, 1e-6)  # blurred inside only
    slope_y, slope_x = np.gradient(height)
    normal = np.dstack([-slope_x, slope_y, np.ones_like(height)])
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def estimate_normals(rgb: Image.Image, model: str) -> Float[ndarray, "H W 3"]:
    """Unit normals by a diffusers normals pipeline (Marigold, for example)."""
    options: Any = {"local_files_only": only_local(model), "trust_remote_code": False}
    import torch
    from diffusers import MarigoldNormalsPipeline

    pipeline = MarigoldNormalsPipeline.from_pretrained(model, **options)
    pipeline.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(0)
    prediction = pipeline(rgb, generator=seeded, return_dict=False)[0][0]
    return prediction / np.linalg.norm(prediction, axis=-1, keepdims=True).clip(1e-6)
