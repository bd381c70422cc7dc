"""The hash grid: one definition in torch, faster twins with the same signature, chosen here."""

import difflib
import functools
import importlib
import importlib.util
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from .hash_grid_torch import GridSpec, hash_grid_torch


def _twin(name: str):
    """A backend that is imported when it is first called."""

    def call(x, table, spec):
        module = importlib.import_module(f".hash_grid_{name}", __package__)
        return getattr(module, f"hash_grid_{name}")(x, table, spec)

    return call


HASH_GRIDS = {
    "torch": hash_grid_torch,
    "numba": _twin("numba"),
    "tinycudann": _twin("tinycudann"),
}


def hash_grid(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec, backend: str = "auto"
) -> Float[Tensor, "N E"]:
    """Features of points in [0, 1]^D (others take the nearest such point's): [N D] -> [N L*C].

    table: all levels' entries, [spec.n_params]. backend: a name of HASH_GRIDS, or "auto", the
    fastest that can be had. `torch` is the definition.
    """
    if x.shape[-1] != spec.dims or table.numel() != spec.n_params:
        raise ValueError(
            f"Points of {spec.dims} dimensions and a table of {spec.n_params} floats go with "
            f"{spec}; points {list(x.shape)} and a table of {table.numel()} came."
        )
    if check_backend(backend) == "auto":
        backend = choose_backend(x, table)
    return HASH_GRIDS[backend](x.clamp(0, 1), table, spec)


def check_backend(name: str) -> str:
    if name != "auto" and name not in HASH_GRIDS:
        near = difflib.get_close_matches(name, ["auto", *HASH_GRIDS], cutoff=0.3)
        raise ValueError(
            f"No hash grid backend is called {name!r}. Close names: {near}. "
            f"All: auto, {', '.join(HASH_GRIDS)}."
        )
    return name


def choose_backend(x: Tensor, table: Tensor) -> str:
    if x.dtype != torch.float32 or table.dtype != torch.float32:
        return "torch"
    if x.is_cuda:
        return "tinycudann" if is_usable("tinycudann") else "torch"
    if x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled()):
        return "numba" if is_usable("numba") else "torch"
    return "torch"


@functools.cache
def is_usable(module: str) -> bool:
    """Whether a module is there and imports; one that is there and doesn't import is warned of."""
    if importlib.util.find_spec(module) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:
        warnings.warn(
            f"{module} is installed but doesn't import ({type(error).__name__}: {error}); the hash "
            f"grid goes through torch instead, which is slower.",
            stacklevel=2,
        )
        return False
    return True
