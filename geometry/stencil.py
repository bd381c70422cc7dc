"""The finite-difference stencil: a point and its six neighbours along x, y and z."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def neighbours(points: Float[Tensor, "N D"], step: float) -> Float[Tensor, "N 6 D"]:
    """The points at +step and -step along x, y and z; a fourth coordinate stays."""
    ahead = step * torch.eye(3, points.shape[1], dtype=points.dtype, device=points.device)
    return points[:, None] + torch.stack([ahead, -ahead], dim=1).flatten(0, 1)


def central_difference_normal(density: Float[Tensor, "N 6"]) -> Float[Tensor, "N 3"]:
    """Direction in which density falls fastest, from the densities of `neighbours`.

    The differences' division by 2 eps is left out: it doesn't change the direction.
    """
    return F.normalize(density[:, 1::2] - density[:, 0::2], dim=-1)
