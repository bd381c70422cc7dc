"""The 4D field's encoding: E(x, tau) = H3(x) + H4(x, tau), two hash grids of the same settings.

Points lie in [0, 1]^3, frame times tau in [0, 1]. A static encoding has H4 too, frozen and left
out of the sum, so that a dynamic one starts from its checkpoint.

Many points of one frame go through that frame's own table (`frame_table`): the same features and
gradients in less than half of the time.
"""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..bounds import Bounded, bounded
from .encoding import Encoding
from .frame_table import frame_spec
from .hash_grid import HASH_GRIDS, check_backend, choose_backend, hash_grid, hash_grid_stencil
from .hash_grid_torch import GridSpec

INITIAL_RANGE = 1e-4  # entries start uniform in [-this, this]


class HashGrid(nn.Module):
    """A hash grid with a table of its own, `params`."""

    def __init__(self, spec: GridSpec, backend: str = "auto"):
        super().__init__()
        self.spec = spec
        self.backend = check_backend(backend)
        self.params = nn.Parameter((torch.rand(spec.n_params) * 2 - 1) * INITIAL_RANGE)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        return hash_grid(x, self.params, self.spec, self.backend)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *messages):
        loaded = state_dict.get(prefix + "params")
        if loaded is None or loaded.numel() == self.params.numel():
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *messages)
            return
        error_messages = messages[-1]
        error_messages.append(
            f"{prefix}params has {loaded.numel()} floats in the checkpoint, but {self.spec} has "
            f"{self.params.numel()}. Give pos_encoding_config the settings that the checkpoint was "
            f"trained with{other_settings(loaded.numel(), self.spec)}."
        )


def other_settings(n_params: int, spec: GridSpec) -> str:
    """A hint which n_levels or log2_hashmap_size would give a table that many floats."""
    for name, values in (("n_levels", range(1, 33)), ("log2_hashmap_size", range(3, 29))):
        for value in values:
            with contextlib.suppress(ValueError):  # too fine a grid
                if dataclasses.replace(spec, **{name: value}).n_params == n_params:
                    return f"; {name}={value} would fit"
    return ""


def lay_out(grids: Mapping[str, HashGrid], state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Lays tables out as release 0.1 did, if the state dict's have the sizes of that."""
    found = {
        grid: state_dict[f"{prefix}{name}.params"].numel()
        for name, grid in grids.items()
        if f"{prefix}{name}.params" in state_dict
    }
    older = {grid: dataclasses.replace(grid.spec, float64_scale=True) for grid in found}
    new = all(size == grid.spec.n_params for grid, size in found.items())
    if not new and all(size == older[grid].n_params for grid, size in found.items()):
        for grid, spec in older.items():
            grid.spec = spec
            grid.params.data = grid.params.new_empty(spec.n_params)


@dataclasses.dataclass
class SpaceTimeConfig(Bounded):
    otype: str = bounded("HashGridSpatialTime", names=("HashGridSpatialTime",))
    n_levels: int = bounded(16, 1, 32)
    n_features_per_level: int = bounded(2, 1, 8)
    log2_hashmap_size: int = bounded(19, 3, 28)  # a level has at most 2^this entries
    # lattice points a side of the coarsest level
    base_resolution: int = bounded(16, 2, 2**16)
    # resolution of a level over the level before
    per_level_scale: float = bounded(1.447269237440378, 1, 16)
    static: bool = False  # freeze the grid over space and time and leave it out
    # torch (the definition, also of the networks), numba, cuda, tinycudann, or auto: the fastest
    # that can be had
    backend: str = bounded("auto", names=("auto", *HASH_GRIDS))


class SpaceTimeEncoding(Encoding):
    """H3 (`encoding`) and H4 (`encoding_time`)."""

    Config = SpaceTimeConfig

    @classmethod
    def from_config(cls, cfg: Any) -> "SpaceTimeEncoding":
        names = {setting.name for setting in dataclasses.fields(GridSpec)}
        settings = {name: cfg[name] for name in names - {"dims", "float64_scale"}}
        space, time = GridSpec(3, **settings), GridSpec(4, **settings)
        return cls(space, time, cfg.static, cfg.backend)

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
        return entries is None or bool(entries.abs().max() > INITIAL_RANGE)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.take_layout(state_dict, prefix)  # before the tables are loaded
        super()._load_from_state_dict(state_dict, prefix, *rest)

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
