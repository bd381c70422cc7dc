"""The inverse of x + D(x), D trilinear on a lattice over the unit cube: where points went.

Outside the cube D is the nearest point's, so that every point came from somewhere. Where D folds
space (det d(x + D)/dx < 0), several places came from one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CLOSE = 1e-9  # of the cube's side: near enough
STEPS = 60  # a handful do where D is gentle
LEAST_STEP = 1e-6  # of a whole one: shorter ones lead nowhere
FLAT = 1e-3  # det of a cell that is flatter still, so that no step is endless


def invert(table: Float[Tensor, "3 R R R"], goal: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """x with x + D(x) = goal, as near as Newton's method comes to it.

    A step that makes the error larger is taken again, half as long.
    """
    x = goal - look_up(table, goal)[0]
    found, which = x.clone(), torch.arange(len(x), device=x.device)
    offset, slope = look_up(table, x)
    left, step = x + offset - goal, torch.ones_like(x[:, :1])
    for _ in range(STEPS):
        going = (left.norm(dim=-1) > CLOSE) & (step[:, 0] > LEAST_STEP)
        if not going.any():
            break
        which, goal, x, left = which[going], goal[going], x[going], left[going]
        slope, step = slope[going], step[going]
        tried = x - step * solve(slope, left)
        offset, tried_slope = look_up(table, tried)
        rest = tried + offset - goal
        better = rest.norm(dim=-1, keepdim=True) < left.norm(dim=-1, keepdim=True)
        x, left = torch.where(better, tried, x), torch.where(better, rest, left)
        slope = torch.where(better[..., None], tried_slope, slope)
        step = torch.where(better, (2 * step).clamp(max=1), step / 2)
        found[which] = x
    return found


def solve(slope: Float[Tensor, "N 3 3"], right: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """(I + slope)^-1 right, by cross products; finite wherever that is singular."""
    identity = torch.eye(3, dtype=slope.dtype, device=slope.device)
    first, second, third = (slope + identity).unbind(-1)
    cross = torch.linalg.cross
    rows = [cross(second, third), cross(third, first), cross(first, second)]
    volume = (first * rows[0]).sum(-1, keepdim=True)
    volume = torch.where(volume < 0, -1.0, 1.0) * volume.abs().clamp(min=FLAT)
    return torch.stack([(row * right).sum(-1) for row in rows], dim=-1) / volume


def look_up(
    table: Float[Tensor, "C R R R"], x: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C 3"]]:
    """Trilinear interpolation and its derivative in x; on a face between cells, that of the cell
    after it. Outside the cube: of the nearest point."""
    cells = table.shape[-1] - 1
    inside = x.clamp(0, 1) * cells
    cell = inside.nan_to_num().long().clamp(max=cells - 1)
    at = (inside - cell)[..., None]
    step = torch.tensor([1, cells + 1, (cells + 1) ** 2], device=x.device)
    ends = step[:, None] * torch.arange(2, device=x.device)
    corners = (ends[2][:, None, None] + ends[1][:, None] + ends[0]).flatten()  # x fastest
    value = table.flatten(1).T.contiguous()[(cell * step).sum(-1, keepdim=True) + corners]
    slopes: list[Tensor] = []
    for axis in range(3):
        part = at[:, axis : axis + 1]
        first, second = value[:, 0::2], value[:, 1::2]
        slopes = [torch.lerp(other[:, 0::2], other[:, 1::2], part) for other in slopes]
        slopes.append(second - first)
        value = torch.lerp(first, second, part)
    slope = torch.stack(slopes, dim=-1)[:, 0]
    moves = (x >= 0) & (x <= 1)  # outside, D stays as it is at the border
    return value[:, 0], slope * (cells * moves)[:, None]
