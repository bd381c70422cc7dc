"""A hash grid that learns: a table of its own, its settings in a config, and how older tables lie.

Shared by the encodings that are made of such grids.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..bounds import Bounded, bounded
from .hash_grid import HASH_GRIDS, check_backend, hash_grid
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


def was_trained(entries: Float[Tensor, " M"]) -> bool:
    """Whether a table's entries have left where they start."""
    return bool(entries.abs().max() > INITIAL_RANGE)


@dataclasses.dataclass
class GridConfig(Bounded):
    """The settings of an encoding's hash grids; `otype` is the encoding's to name."""

    otype: str = ""
    n_levels: int = bounded(16, 1, 32)
    n_features_per_level: int = bounded(2, 1, 8)
    log2_hashmap_size: int = bounded(19, 3, 28)  # a level has at most 2^this entries
    # lattice points a side of the coarsest level
    base_resolution: int = bounded(16, 2, 2**16)
    # resolution of a level over the level before
    per_level_scale: float = bounded(1.447269237440378, 1, 16)
    # torch (the definition, also of the networks), numba, cuda, tinycudann, or auto: the fastest
    # that can be had
    backend: str = bounded("auto", names=("auto", *HASH_GRIDS))


def grid_spec(cfg: Any, dims: int) -> GridSpec:
    """What a GridConfig's settings mean for a grid of so many dimensions."""
    names = {setting.name for setting in dataclasses.fields(GridSpec)}
    return GridSpec(dims, **{name: cfg[name] for name in names - {"dims", "float64_scale"}})
