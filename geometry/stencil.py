"""The finite-difference stencil: a point and its six neighbours along x, y and z."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def neighbours(points: Float[Tensor, "N D"], step: float) -> Float[Tensor, "N 6 D"]:
    """The points at +step and -step along x, y and z; a fourth coordinate stays."""
    return points[:, None] + offsets(step, points.shape[1], points.dtype, points.device)


@functools.cache
@torch.inference_mode(False)
def offsets(
    step: float, dims: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "6 {dims}"]:
    """From a point to its neighbours; made once."""
    ahead = step * torch.eye(3, dims, dtype=dtype, device=device)
    return torch.stack([ahead, -ahead], dim=1).flatten(0, 1)


def central_difference_normal(density: Float[Tensor, "N 6"]) -> Float[Tensor, "N 3"]:
    """Direction in which density falls fastest, from the densities of `neighbours`.

    The differences' division by 2 eps is left out: it doesn't change the direction.
    """
    ahead, behind = density.unflatten(1, (3, 2)).unbind(-1)
    return F.normalize(behind - ahead, dim=-1)
