"""The hash grid: one definition in torch, faster twins with the same signature, chosen here."""

import difflib
import functools
import importlib
import importlib.util
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import cuda_program
from .hash_grid_torch import GridSpec, hash_grid_torch
from .stencil import neighbours


def _twin(function: str, backend: str):
    """A backend's function that is imported when it is first called."""

    def call(*arguments):
        module = importlib.import_module(f".hash_grid_{backend}", __package__)
        return getattr(module, f"{function}_{backend}")(*arguments)

    return call


HASH_GRIDS = {
    "torch": hash_grid_torch,
    "numba": _twin("hash_grid", "numba"),
    "cuda": _twin("hash_grid", "cuda"),
    "tinycudann": _twin("hash_grid", "tinycudann"),
}
# Twins of hash_grid_stencil and of frame_table_torch, in backends that gain from them.
STENCILS = {"cuda": _twin("stencil", "cuda")}
FRAME_TABLES = {"cuda": _twin("frame_table", "cuda")}


def hash_grid(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec, backend: str = "auto"
) -> Float[Tensor, "N E"]:
    """Features of points in [0, 1]^D (others take the nearest such point's): [N D] -> [N L*C].

    table: all levels' entries, [spec.n_params]. backend: a name of HASH_GRIDS, or "auto", the
    fastest that works here. `torch` is the definition.
    """
    backend = choose_backend(x, table, spec, backend)
    return HASH_GRIDS[backend](x.clamp(0, 1), table, spec)


def hash_grid_stencil(
    x: Float[Tensor, "N D"],
    step: float,
    table: Float[Tensor, " M"],
    spec: GridSpec,
    backend: str = "auto",
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
    """Features of points and of each one's `neighbours` (a step may lead out of the box)."""
    backend = choose_backend(x, table, spec, backend)
    if backend in STENCILS:
        return STENCILS[backend](x, step, table, spec)
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
    if x.dtype != torch.float32 or table.dtype != torch.float32:
        return "torch"
    needs_x_gradient = x.requires_grad and torch.is_grad_enabled()
    if x.device.type == "cpu" and not needs_x_gradient and is_usable("numba"):
        return "numba"
    fits_cuda = x.is_cuda and not needs_x_gradient and spec.n_features_per_level == 2
    if fits_cuda and cuda_program.is_usable(x.device):
        return "cuda"
    if x.is_cuda and is_usable("tinycudann"):
        return "tinycudann"
    return "torch"


def check_backend(name: str) -> str:
    if name != "auto" and name not in HASH_GRIDS:
        near = difflib.get_close_matches(name, ["auto", *HASH_GRIDS], cutoff=0.3)
        raise ValueError(
            f"No hash grid backend is called {name!r}. Close names: {near}. "
            f"All: auto, {', '.join(HASH_GRIDS)}."
        )
    return name


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
