"""A frozen scene as a lattice of what it is at its nodes: one look-up in place of H3's levels and
of two networks, forward and in the gradient to points.

It holds density before its activation (bias added), and features: those interpolated, softplus
rounds off an edge within a cell. It is read as finely as a clip is rendered: 256 cells are finer
than the steps of 256 samples a ray and than the pixels of 128 x 128 (docs/method.md).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .deformation import read

CHUNK = 2**20  # nodes that are looked at together


class BakedScene:
    """cells: along a side of the unit cube; outside, it is what the cube's nearest point is."""

    def __init__(self, cells: int) -> None:
        self.nodes = cells + 1
        self.table: Tensor | None = None
        self.version: tuple | None = None  # of the parameters that the table is of

    def read(
        self,
        x: Float[Tensor, "N 3"],
        look: Callable[[Float[Tensor, "M 3"]], Float[Tensor, "M C"]],
        parameters: Sequence[Tensor],
    ) -> Float[Tensor, "N C"]:
        """What `look`, a function with these parameters, says of points of the unit cube: made of
        what it says at the nodes, anew if the parameters were written to since."""
        version = (x.device, *((p.data_ptr(), p._version) for p in parameters))
        if self.table is None or version != self.version:
            self.table, self.version = self.bake(x, look), version
        return read(self.table, x)

    @torch.no_grad()
    def bake(
        self, like: Tensor, look: Callable[[Float[Tensor, "M 3"]], Float[Tensor, "M C"]]
    ) -> Float[Tensor, "C R R R"]:
        """A node's values lie side by side in memory."""
        count = self.nodes**3
        parts = []
        for start in range(0, count, CHUNK):
            number = torch.arange(start, min(start + CHUNK, count), device=like.device)
            at = [number % self.nodes, number // self.nodes % self.nodes, number // self.nodes**2]
            parts.append(look(torch.stack(at, dim=-1).to(like) / (self.nodes - 1)))
        return torch.cat(parts).view(*[self.nodes] * 3, -1).permute(3, 0, 1, 2)
