"""The hash grid: one definition in torch, faster twins with the same signature, chosen here."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from . import hash_grid_cuda, hash_grid_numba, hash_grid_tinycudann
from .hash_grid_torch import GridSpec, hash_grid_torch
from .stencil import neighbours


class Twin(NamedTuple):
    """A backend: its hash grid, what it has besides, and what it can be given."""

    hash_grid: Callable
    fits: Callable[[Tensor, Tensor, GridSpec], bool]  # whether `auto` may give it x and table
    stencil: Callable | None = None  # of hash_grid_stencil
    frame_table: Callable | None = None  # of frame_table_torch


HASH_GRIDS = {
    "torch": Twin(hash_grid_torch, lambda x, table, spec: True),
    "numba": Twin(hash_grid_numba.hash_grid_numba, hash_grid_numba.fits),
    "cuda": Twin(
        hash_grid_cuda.hash_grid_cuda,
        hash_grid_cuda.fits,
        hash_grid_cuda.stencil_cuda,
        hash_grid_cuda.frame_table_cuda,
    ),
    "tinycudann": Twin(hash_grid_tinycudann.hash_grid_tinycudann, hash_grid_tinycudann.fits),
}
FASTEST_FIRST = ("cuda", "numba", "tinycudann", "torch")


def hash_grid(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec, backend: str = "auto"
) -> Float[Tensor, "N E"]:
    """Features of points in [0, 1]^D (others take the nearest such point's): [N D] -> [N L*C].

    table: all levels' entries, [spec.n_params]. backend: a name of HASH_GRIDS, or "auto", the
    fastest that works here. `torch` is the definition.
    """
    backend = choose_backend(x, table, spec, backend)
    return HASH_GRIDS[backend].hash_grid(x.clamp(0, 1), table, spec)


def hash_grid_stencil(
    x: Float[Tensor, "N D"],
    step: float,
    table: Float[Tensor, " M"],
    spec: GridSpec,
    backend: str = "auto",
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
    """Features of points and of each one's `neighbours` (a step may lead out of the box)."""
    backend = choose_backend(x, table, spec, backend)
    own_stencil = HASH_GRIDS[backend].stencil
    if own_stencil is not None:
        return own_stencil(x, step, table, spec)
    near = neighbours(x, step)
    features = hash_grid(torch.cat([x, near.flatten(0, 1)]), table, spec, backend)
    # split, not indexed, because its gradient is one concatenation
    own, others = features.split([len(x), 6 * len(x)])
    return own, others.view(len(x), 6, spec.n_output_dims)


def choose_backend(x: Tensor, table: Tensor, spec: GridSpec, backend: str = "auto") -> str:
    """The name in HASH_GRIDS that a call goes to."""
    if x.shape[-1] != spec.dims or table.numel() != spec.n_params:
        raise ValueError(
            f"Points of {spec.dims} dimensions and a table of {spec.n_params} floats go with "
            f"{spec}; points {list(x.shape)} and a table of {table.numel()} came."
        )
    if check_backend(backend) != "auto":
        return backend
    return next(name for name in FASTEST_FIRST if HASH_GRIDS[name].fits(x, table, spec))


def check_backend(name: str) -> str:
    if name != "auto" and name not in HASH_GRIDS:
        near = difflib.get_close_matches(name, ["auto", *HASH_GRIDS], cutoff=0.3)
        raise ValueError(
            f"No hash grid backend is called {name!r}. Close names: {near}. "
            f"All: auto, {', '.join(HASH_GRIDS)}."
        )
    return name
