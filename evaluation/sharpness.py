"""How sharp a body is drawn: the energy of its coherent gradient.

The structure tensor of a picture, J = sum over colours of g g^T (g: the gradient), averaged over a
window, has eigenvalues l1 >= l2 (Bigun and Granlund, 1987). Along an edge l1 is the gradient's
energy and l2 is 0; grain runs every way, so both grow alike. l1 - l2 therefore sees edges and not
grain: noise that is laid over a blurred picture doesn't make it sharp again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW = 5  # pixels of a side
INSIDE = 2  # pixels from the body's edge on: the outline against white says nothing of a face


def coherent_energy(pictures: Float[Tensor, "N S S 3"]) -> Float[Tensor, "N S S 1"]:
    """l1 - l2 of each pixel, in squares of colour a pixel."""
    padded = F.pad(pictures.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    tensor = torch.stack([(x * x).sum(1), (y * y).sum(1), (x * y).sum(1)], dim=1)  # [N 3 S S]
    xx, yy, xy = F.avg_pool2d(tensor, WINDOW, 1, WINDOW // 2).unbind(dim=1)
    return ((xx - yy).square() + 4 * xy.square()).sqrt()[..., None]


def inside(opacity: Float[Tensor, "N S S 1"]) -> Float[Tensor, "N S S 1"]:
    """1 where a body is solid for INSIDE pixels around."""
    outside = (opacity <= 0.5).float().permute(0, 3, 1, 2)
    return 1 - F.max_pool2d(outside, 2 * INSIDE + 1, 1, INSIDE).permute(0, 2, 3, 1)


def edge_strength(pictures: Float[Tensor, "N S S 3"], opacity: Float[Tensor, "N S S 1"]) -> float:
    """Root mean square of the coherent gradient inside the bodies, in colour a pixel."""
    where = inside(opacity)
    return float(((coherent_energy(pictures) * where).sum() / where.sum().clamp_min(1)).sqrt())
