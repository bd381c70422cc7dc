"""Specks: what floats around a body instead of belonging to it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

NEAR = 2  # pixels around the body, at S = 64, that are still its edge
SOLID = 0.25  # opacity from which a pixel may belong to the body; an antenna is a third of a pixel


def body(opacity: Float[Tensor, "N S S 1"]) -> Bool[Tensor, "N S S 1"]:
    """The largest connected solid part of each picture; nothing where nothing is solid."""
    parts = []
    for solid in (opacity[..., 0] > SOLID).cpu().numpy().astype(np.uint8):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]  # 0 is the background
        parts.append(labels == 1 + sizes.argmax() if len(sizes) else solid == 2)
    return torch.from_numpy(np.stack(parts))[..., None]


def specks(opacity: Float[Tensor, "N S S 1"]) -> float:
    """The share of all opacity that is more than NEAR pixels away from its picture's body."""
    near = F.max_pool2d(body(opacity)[..., 0].float(), 2 * NEAR + 1, 1, NEAR)[..., None]
    return float((opacity * (1 - near)).sum() / opacity.sum().clamp_min(1e-6))
