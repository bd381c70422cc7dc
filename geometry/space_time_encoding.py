"""The 4D field's encoding: E(x, tau) = H3(x) + H4(x, tau), two hash grids of the same settings.

Points lie in [0, 1]^3, frame times tau in [0, 1]. A static encoding has H4 too, frozen and left
out of the sum, so that a dynamic one starts from its checkpoint.

Many points of one frame go through that frame's own table (`frame_table`): the same features and
gradients in less than half of the time.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded
from .encoding import Encoding
from .frame_table import frame_spec
from .grid import GridConfig, HashGrid, grid_spec, lay_out, was_trained
from .hash_grid import HASH_GRIDS, choose_backend, hash_grid, hash_grid_stencil
from .hash_grid_torch import GridSpec


@dataclasses.dataclass
class SpaceTimeConfig(GridConfig):
    otype: str = bounded("HashGridSpatialTime", names=("HashGridSpatialTime",))
    static: bool = False  # freeze the grid over space and time and leave it out


class SpaceTimeEncoding(Encoding):
    """H3 (`encoding`) and H4 (`encoding_time`)."""

    Config = SpaceTimeConfig

    @classmethod
    def from_config(cls, cfg: Any) -> "SpaceTimeEncoding":
        return cls(grid_spec(cfg, 3), grid_spec(cfg, 4), cfg.static, cfg.backend)

    def __init__(self, space: GridSpec, time: GridSpec, static: bool, backend: str = "auto"):
        super().__init__()
        self.static = static
        self.backend = backend
        self.encoding = HashGrid(space, backend)
        self.encoding_time = HashGrid(time, backend)
        self.encoding_time.requires_grad_(not static)
        self.n_output_dims = space.n_output_dims

    def take_layout(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        lay_out(
            {"encoding": self.encoding, "encoding_time": self.encoding_time}, state_dict, prefix
        )

    def ever_moved(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether H4's entries in a state dict have left where they start."""
        entries = state_dict.get(f"{prefix}encoding_time.params")
        return entries is None or was_trained(entries)

    def forward(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | None = None
    ) -> Float[Tensor, "N E"]:
        """times: tau of each point, or of all; None is tau = 0."""
        grids = self.grids(x, times, len(x))
        return total(hash_grid(*grid, self.backend) for grid in grids)

    def stencil(
        self, x: Float[Tensor, "N 3"], step: float, times: Float[Tensor, "#N 1"] | None = None
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
        """Features of points, and of each one's `neighbours`."""
        grids = self.grids(x, times, 7 * len(x))
        features = [
            hash_grid_stencil(points, step, table, spec, self.backend)
            for points, table, spec in grids
        ]
        own, near = zip(*features, strict=True)
        return total(own), total(near)

    def grids(
        self, x: Float[Tensor, "N 3"], times: Float[Tensor, "#N 1"] | None, look_ups: int
    ) -> list[tuple[Float[Tensor, "N _"], Float[Tensor, " _"], GridSpec]]:
        """Points, table and layout of the grids whose features add up to E."""
        space, time = self.encoding, self.encoding_time
        if self.static:
            return [(x, space.params, space.spec)]
        times = x.new_zeros(1, 1) if times is None else times
        make = self.frame_table(x, look_ups) if len(times) == 1 else None
        if make is not None:
            table = make(space.params, time.params, times, space.spec, time.spec)
            return [(x, table, frame_spec(space.spec))]
        in_time = torch.cat([x, times.expand(len(x), 1)], dim=-1)
        return [(x, space.params, space.spec), (in_time, time.params, time.spec)]

    def frame_table(self, x: Float[Tensor, "N 3"], look_ups: int) -> Callable | None:
        """Makes a frame's table, where a backend can and so many look-ups at one tau read more
        than that takes."""
        frame = frame_spec(self.encoding.spec)
        if look_ups * frame.n_output_dims * 8 <= frame.n_params:
            return None
        backend = choose_backend(x, self.encoding.params, self.encoding.spec, self.backend)
        return HASH_GRIDS[backend].frame_table


def total(features: Iterable[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    return functools.reduce(operator.add, features)  # a sum without its 0 + ...
