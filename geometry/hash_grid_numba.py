"""The hash grid on CPUs through numba: several times `hash_grid_torch`'s speed, no gradient in x.

Threads share out the points on the way forward, and on the way back the levels, whose entries are
disjoint: the result doesn't depend on their number.
"""

import importlib.util
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .hash_grid_torch import GridSpec
from .usable import is_usable, needs_gradient

MIN_POINTS_PER_THREAD = 4096  # with fewer, starting a thread costs more than it saves


def fits(x: Tensor, table: Tensor, spec: GridSpec) -> bool:
    on_cpu = x.device.type == "cpu" and {x.dtype, table.dtype} == {torch.float32}
    return on_cpu and not needs_gradient(x) and is_usable("numba")


def hash_grid_numba(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec
) -> Float[Tensor, "N E"]:
    if {x.device.type, table.device.type} != {"cpu"} or x.dtype != table.dtype:
        raise ValueError(
            f"The numba hash grid wants points and table on the CPU and of one float type; points "
            f"are {x.dtype} on {x.device}, the table is {table.dtype} on {table.device}. "
            f"Try backend 'auto'."
        )
    if needs_gradient(x):
        raise ValueError(
            "The numba hash grid has no gradient in the points, but the points require one "
            "(normal_type 'analytic' does). Try backend 'auto' or 'torch'."
        )
    return NumbaHashGrid.apply(x, table, spec)


class NumbaHashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, spec):
        ctx.save_for_backward(x)
        ctx.spec = spec
        x, entries = x.detach().contiguous().numpy(), table.detach().numpy()
        out = np.empty((len(x), spec.n_output_dims), x.dtype)
        levels = level_plan(spec, x.dtype)

        def run(start, stop):
            for (forward, _), own, constants, column in levels:
                forward(x, entries[own], *constants, out, column, start, stop)

        threads = thread_count(len(x))
        bounds = np.linspace(0, len(x), threads + 1).astype(int)
        in_threads(run, itertools.pairwise(bounds), threads)
        return torch.from_numpy(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        x = ctx.saved_tensors[0].contiguous().numpy()
        grad_out = grad_out.contiguous().numpy()
        grad_table = np.zeros(ctx.spec.n_params, x.dtype)

        def run(kernels, own, constants, column):
            kernels[1](x, grad_out, *constants, grad_table[own], column)

        in_threads(run, level_plan(ctx.spec, x.dtype), thread_count(len(x)))
        return None, torch.from_numpy(grad_table), None


def level_plan(spec: GridSpec, dtype: np.dtype) -> list[tuple]:
    """(kernels, own part of the table, constants, first output column) of each level."""
    features, plan = spec.n_features_per_level, []
    for number, level in enumerate(spec.levels):
        kernels = compiled_module().kernels(spec.dims, features, level.hashed)
        own = slice(level.offset * features, (level.offset + level.size) * features)
        multipliers = tuple(np.uint32(multiplier) for multiplier in level.multipliers)
        constants = (dtype.type(level.scale), np.uint32(level.size), multipliers)
        plan.append((kernels, own, constants, number * features))
    return plan


def thread_count(points: int) -> int:
    return max(1, min(torch.get_num_threads(), points // MIN_POINTS_PER_THREAD))


def in_threads(run, jobs, threads: int) -> None:
    """Call `run` with each job. The kernels release the GIL; no thread outlives the call."""
    if threads == 1:
        for job in jobs:
            run(*job)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(run, *job) for job in jobs]:
                done.result()


def compiled_module():
    """The kernels' module under one name wherever this package lives; its docstring says why."""
    name = "animate124_hash_grid_kernels"
    if name not in sys.modules:
        path = Path(__file__).with_name("hash_grid_numba_kernels.py")
        import_spec = importlib.util.spec_from_file_location(name, path)
        if import_spec is None or import_spec.loader is None:
            raise ImportError(f"{path} can't be loaded as a module.")
        module = importlib.util.module_from_spec(import_spec)
        import_spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
