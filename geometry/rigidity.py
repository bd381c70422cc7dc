"""How far a deformation is from a motion that keeps distances, and from one that folds space.

F = dx_c/dx, at the centres of the cells of the lattice that the displacement is trilinear on.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEAST_VOLUME = 0.3  # of a cell's, below which the barrier against folding sets in


def lattice_gradient(table: Float[Tensor, "T 3 R R R"]) -> Float[Tensor, "T C 3 3"]:
    """F = I + dD/dx at the centres of C = (R - 1)^3 cells; a row for each component of x_c.

    table: displacements at the nodes of a lattice over the unit cube, x fastest.
    """
    columns = []
    for axis in (4, 3, 2):  # x, y, z
        slope = table.diff(dim=axis) * (table.shape[axis] - 1)
        for across in {2, 3, 4} - {axis}:
            n = slope.shape[across] - 1
            slope = (slope.narrow(across, 0, n) + slope.narrow(across, 1, n)) / 2
        columns.append(slope)
    slope = torch.stack(columns, dim=-1).flatten(2, 4).transpose(1, 2)
    return slope + torch.eye(3, dtype=table.dtype, device=table.device)


def canonical_centres(table: Float[Tensor, "T 3 R R R"]) -> Float[Tensor, "T C 3"]:
    """x_c of the centres of the cells."""
    cells = table.shape[-1] - 1
    line = (torch.arange(cells, dtype=table.dtype, device=table.device) + 0.5) / cells
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    centres = torch.stack([x, y, z], dim=-1).flatten(0, 2)
    return centres + F.avg_pool3d(table, 2, 1).flatten(2).transpose(1, 2)


def arap(gradient: Float[Tensor, "*N 3 3"]) -> Float[Tensor, "*N"]:
    """|F^T F - I|^2, as rigid as possible: 0 for rotations and shifts alone (Sorkine & Alexa 2007
    measure the same, by the best rotation)."""
    identity = torch.eye(3, dtype=gradient.dtype, device=gradient.device)
    return (gradient.mT @ gradient - identity).square().sum((-1, -2))


def fold(gradient: Float[Tensor, "*N 3 3"]) -> Float[Tensor, "*N"]:
    """max(0, LEAST_VOLUME - det F)^2: nothing until a cell comes from less than that share of its
    volume, and more and more where space would be folded over (det F < 0)."""
    first, second, third = gradient.unbind(-1)
    volume = (torch.linalg.cross(first, second) * third).sum(-1)
    return (LEAST_VOLUME - volume).relu().square()
