"""The hash grid through tiny-cuda-nn's torch bindings, on CUDA devices that have them.

A tinycudann `Encoding` owns its parameters; ours are the argument `table`, put in their place for
the call. The encoding itself is made once for each grid and device.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from .hash_grid_torch import GridSpec, hash_grid_torch
from .usable import is_usable


def fits(x: Tensor, table: Tensor, spec: GridSpec) -> bool:
    return x.is_cuda and x.dtype == table.dtype == torch.float32 and is_usable("tinycudann")


def hash_grid_tinycudann(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec
) -> Float[Tensor, "N E"]:
    if not (x.is_cuda and table.is_cuda) or table.dtype != torch.float32:
        raise ValueError(
            f"The tinycudann hash grid wants CUDA tensors and a float32 table; points are on "
            f"{x.device}, the table is {table.dtype} on {table.device}. Try backend 'auto'."
        )
    if len(x) == 0:  # its kernels take no empty batch
        return hash_grid_torch(x, table, spec)
    with torch.cuda.device(x.device):
        return call_with_table(encoding(spec, x.device), table, x)


def call_with_table(module: torch.nn.Module, table: Tensor, x: Tensor) -> Tensor:
    return torch.func.functional_call(module, {"params": table}, (x,))


@functools.cache
def encoding(spec: GridSpec, device: torch.device) -> torch.nn.Module:
    """A tinycudann encoding without parameters of its own, on the current CUDA device."""
    import tinycudann  # pyright: ignore[reportMissingImports] -- optional

    module = tinycudann.Encoding(
        spec.dims,
        {
            "otype": "HashGrid",
            "n_levels": spec.n_levels,
            "n_features_per_level": spec.n_features_per_level,
            "log2_hashmap_size": spec.log2_hashmap_size,
            "base_resolution": spec.base_resolution,
            "per_level_scale": spec.per_level_scale,
        },
        dtype=torch.float32,
    )
    if module.params.numel() != spec.n_params:
        raise ValueError(
            f"tinycudann lays {spec} out in {module.params.numel()} floats, we in {spec.n_params}. "
            f"Change per_level_scale a little, or take backend 'torch'."
        )
    module.params = torch.nn.Parameter(module.params.new_empty(0), requires_grad=False)
    return module
