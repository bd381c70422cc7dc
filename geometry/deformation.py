"""D: where a point of the moving scene comes from, x_c = x + D(x, tau), with D = 0 at tau = 0.

Points lie in the unit cube, frame times tau in [0, 1]. The way back has two parts: the motion of
the whole scene (`WholeMotion`: a spin, a leap), then displacements on lattices, coarse and fine,
for what its parts do. All are cubic splines in time: a moment's coefficients
are few and its own, so that a crouch isn't smoothed away by the leap after it.

A displacement that is trilinear on a lattice has its derivative in closed form (rigidity.py), and
an inverse as long as that nowhere folds (lattice_inverse.py).
"""

import functools
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import deformation_cuda
from .lattice_inverse import invert
from .times import Runs

CENTRE = 0.5  # of the unit cube, about which the whole scene turns
TURN = 4.0  # radians of a coefficient of 1: at this rate a turn moves the scene as much as a shift
FEW_TIMES = 64  # for which tables are made, whatever they serve


def spline(tau: Float[Tensor, "N 1"], spans: int) -> Float[Tensor, "N K"]:
    """Uniform cubic B-splines over [0, 1] (de Boor 1978, chapter IX): K = spans + 3, sum 1."""
    middle = torch.arange(-1, spans + 2, dtype=tau.dtype, device=tau.device)
    away = (tau * spans - middle).abs()
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far)


def time_functions(tau: Float[Tensor, "N 1"], spans: int) -> Float[Tensor, "N K"]:
    """The splines, each less what it is at tau = 0: whatever is made of them is 0 there."""
    return spline(tau, spans) - spline(torch.zeros_like(tau[:1]), spans)


def rotation(vector: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """The matrix that turns about `vector` by its length in radians (Rodrigues)."""
    x, y, z = vector.unbind(-1)
    none = torch.zeros_like(x)
    cross = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    angle = (vector.square().sum(-1)[..., None, None] + 1e-12).sqrt()  # a gradient at 0, too
    first, second = torch.sinc(angle / math.pi), torch.sinc(angle / (2 * math.pi)).square() / 2
    return (
        torch.eye(3, dtype=vector.dtype, device=vector.device)
        + first * cross
        + second * (cross @ cross)
    )


class WholeMotion(nn.Module):
    """How the scene moves as one: a rotation about its centre and a shift, coefficients [K 6]."""

    def __init__(self, spans: int) -> None:
        super().__init__()
        self.spans = spans
        self.twist = nn.Parameter(torch.zeros(spans + 3, 6))

    def forward(
        self, tau: Float[Tensor, "N 1"]
    ) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 3"]]:
        """R and s of x = R (x_0 - c) + c + s."""
        turn, shift = (time_functions(tau, self.spans) @ self.twist).split(3, dim=-1)
        return rotation(TURN * turn), shift


def back(
    x: Float[Tensor, "*B N 3"], turn: Float[Tensor, "*B 3 3"], shift: Float[Tensor, "*B 3"]
) -> Float[Tensor, "*B N 3"]:
    """Where points were at tau = 0, had nothing but such a motion of the whole moved them: x itself
    to the bit where that is nothing."""
    away, beside = (
        x - CENTRE - shift[..., None, :],
        turn - torch.eye(3, dtype=turn.dtype, device=turn.device),
    )
    return x + (away @ beside - shift[..., None, :])


def onward(
    x: Float[Tensor, "*B N 3"], turn: Float[Tensor, "*B 3 3"], shift: Float[Tensor, "*B 3"]
) -> Float[Tensor, "*B N 3"]:
    """`back`'s inverse."""
    return (x - CENTRE) @ turn.mT + CENTRE + shift[..., None, :]


class Lattice(nn.Module):
    """Displacements at the (cells + 1)^3 nodes of the cube, coefficients [K 3 R R R], x fastest."""

    def __init__(self, cells: int, spans: int) -> None:
        super().__init__()
        self.nodes = nn.Parameter(torch.zeros(spans + 3, 3, *[cells + 1] * 3))


class Deformation(nn.Module):
    """cells: of the lattices, along a side, each more than the one before; spans: of the splines.

    A table [T 3 R R R] has the displacements of T moments on the finest lattice's nodes. fast: on
    CUDA devices, go through `deformation_cuda`.
    """

    def __init__(self, cells: Sequence[int], spans: int, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
        self.spans = spans
        self.whole = WholeMotion(spans)
        self.lattices = nn.ModuleList(Lattice(n, spans) for n in cells)
        self.nodes = cells[-1] + 1  # along a side of the finest lattice

    def table(self, tau: Float[Tensor, "T 1"]) -> Float[Tensor, "T 3 R R R"]:
        return self.joined(time_functions(tau, self.spans))

    def joined(self, functions: Float[Tensor, "T K"]) -> Float[Tensor, "T 3 R R R"]:
        """What all lattices together say, on the finest one's nodes, of values of the splines."""
        size = [self.nodes] * 3
        parts = [
            F.interpolate(
                torch.einsum("tk,kcdhw->tcdhw", functions, lattice.nodes),
                size,
                mode="trilinear",
                align_corners=True,
            )
            for lattice in self.lattices
        ]
        return functools.reduce(operator.add, parts)

    def forward(
        self, x: Float[Tensor, "N 3"], tau: Float[Tensor, "#N 1"] | Runs
    ) -> Float[Tensor, "N 3"]:
        """x_c of points at the time of each, or of all. Fastest where equal times lie together."""
        moments, counts = tau if isinstance(tau, Runs) else runs(tau, len(x))
        if self.serves_few(len(moments), len(x)):
            return self.each(x, tau.of_each() if isinstance(tau, Runs) else tau)
        table, (turn, shift) = self.table(moments), self.whole(moments)
        if self.fast and deformation_cuda.fits(x, table):
            return deformation_cuda.moved_back(x, counts, turn, shift, table)
        return moved_back(x, counts, turn, shift, table)

    def serves_few(self, moments: int, points: int) -> bool:
        """Whether tables of so many moments have more nodes than these points would read off the
        splines one by one."""
        each = self.spans + 3
        return moments > FEW_TIMES and moments * self.nodes**3 > points * each

    def each(self, x: Float[Tensor, "N 3"], tau: Float[Tensor, "N 1"]) -> Float[Tensor, "N 3"]:
        """`forward` with a time for each point: reads what every spline says of it."""
        turn, shift = self.whole(tau)
        x = back(x[:, None], turn, shift)[:, 0]
        functions = time_functions(tau, self.spans)
        each = self.joined(torch.eye(self.spans + 3, dtype=x.dtype, device=x.device))
        each = read(each.flatten(0, 1), x).unflatten(-1, (-1, 3))
        return x + torch.einsum("nk,nkc->nc", functions, each)

    @torch.no_grad()
    def close(self) -> None:
        """Makes a loop: D is 0 at tau = 1 too, and before the last three spans as it was.

        What is left of the motion at tau = 1 is taken off each spline's last three coefficients;
        of turns of the whole, only what they are off from the nearest whole turn.
        """
        left = time_functions(torch.ones_like(self.whole.twist[:1, :1]), self.spans)[0]
        for values in self.parameters():
            rest = torch.tensordot(left.to(values), values, 1)
            if values is self.whole.twist:
                turn = TURN * rest[:3]
                turns = (turn.norm() / (2 * math.pi)).round()
                rest[:3] -= 2 * math.pi / TURN * turns * F.normalize(turn, dim=0)
            values[-3:] -= rest / left[-3:].sum()

    @torch.no_grad()
    def inverse(
        self, canonical: Float[Tensor, "N 3"], tau: Float[Tensor, "1 1"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
        """Where points of the scene at tau = 0 are at tau, and the error |x_c - canonical| [N] of
        what is returned: rounding where D doesn't fold. Where it folds, several places come from
        one: this is one of them.
        """
        x = invert(self.table(tau)[0].double(), canonical.double())
        turn, shift = self.whole(tau)
        x = onward(x.to(canonical), turn[0], shift[0])
        return x, (self(x, tau) - canonical).norm(dim=-1)


def runs(tau: Float[Tensor, "#N 1"], n: int) -> Runs:
    """Times of n points, or one of all, as runs of equal ones: the time of each, and how long it
    is. The host waits for the device if there is more than one time."""
    if len(tau) == 1:
        return Runs(tau, [n])
    moments, counts = tau[:, 0].unique_consecutive(return_counts=True)
    return Runs(moments[:, None], counts.tolist())


def moved_back(
    x: Float[Tensor, "N 3"],
    counts: Sequence[int],
    turn: Float[Tensor, "T 3 3"],
    shift: Float[Tensor, "T 3"],
    table: Float[Tensor, "T 3 R R R"],
) -> Float[Tensor, "N 3"]:
    """x_c of points that lie in runs, one of each moment, as long as `counts` say."""
    if not counts:  # no points, of no time
        return x
    found = [back(own, *motion) for own, *motion in zip(x.split(counts), turn, shift, strict=True)]
    return torch.cat([own + read(lattice, own) for own, lattice in zip(found, table, strict=True)])


def read(table: Float[Tensor, "C R R R"], x: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
    """Trilinear interpolation on a lattice over the unit cube; outside, the nearest point's."""
    at = (2 * x - 1)[None, None, None]
    found = F.grid_sample(table[None], at, "bilinear", "border", align_corners=True)
    return found[0, :, 0, 0].T
