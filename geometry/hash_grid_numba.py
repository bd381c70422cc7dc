"""The hash grid on CPUs through numba: several times `hash_grid_torch`'s speed.

Threads share out the points on the way forward and on the way back to the points, and on the way
back to the table the levels, whose entries are disjoint: nothing depends on their number.
"""

import functools
import importlib.util
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .gradients import gradients_again
from .hash_grid_torch import GridSpec, hash_grid_torch
from .usable import is_usable

MIN_POINTS_PER_THREAD = 4096  # with fewer, starting a thread costs more than it saves


def fits(x: Tensor, table: Tensor, spec: GridSpec) -> bool:
    on_cpu = x.device.type == "cpu" and {x.dtype, table.dtype} == {torch.float32}
    return on_cpu and is_usable("numba")


def hash_grid_numba(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec
) -> Float[Tensor, "N E"]:
    if {x.device.type, table.device.type} != {"cpu"} or x.dtype != table.dtype:
        raise ValueError(
            f"The numba hash grid wants points and table on the CPU and of one float type; points "
            f"are {x.dtype} on {x.device}, the table is {table.dtype} on {table.device}. "
            f"Try backend 'auto'."
        )
    return NumbaHashGrid.apply(x, table, spec)


class NumbaHashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, spec):
        # a table that only gets a gradient isn't held until then
        ctx.save_for_backward(x, table if ctx.needs_input_grad[0] else None)
        ctx.spec = spec
        x, entries = x.detach().contiguous().numpy(), table.detach().numpy()
        out = np.empty((len(x), spec.n_output_dims), x.dtype)

        def run(kernels, own, constants, column, start, stop):
            kernels.forward(x, entries[own], *constants, out, column, start, stop)

        by_points(run, level_plan(spec, x.dtype), len(x))
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, grad_out):
        x, table = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            if table is None:  # its gradient doesn't depend on its entries
                table = x.new_zeros(ctx.spec.n_params, requires_grad=True)
            again = functools.partial(hash_grid_torch, spec=ctx.spec)
            return *gradients_again(again, (x, table), needed, (grad_out,)), None
        x, grad_out = x.contiguous().numpy(), grad_out.contiguous().numpy()
        levels = level_plan(ctx.spec, x.dtype)
        grad_x = to_points(x, table.numpy(), grad_out, levels) if needed[0] else None
        grad_table = to_table(x, grad_out, levels, ctx.spec) if needed[1] else None
        return grad_x, grad_table, None


def to_points(x: np.ndarray, entries: np.ndarray, grad_out: np.ndarray, levels: list) -> Tensor:
    grad_x = np.zeros_like(x)

    def run(kernels, own, constants, column, start, stop):
        kernels.to_points(x, entries[own], grad_out, *constants, grad_x, column, start, stop)

    by_points(run, levels, len(x))
    return torch.from_numpy(grad_x)


def to_table(x: np.ndarray, grad_out: np.ndarray, levels: list, spec: GridSpec) -> Tensor:
    grad_table = np.zeros(spec.n_params, x.dtype)

    def run(kernels, own, constants, column):
        kernels.to_table(x, grad_out, *constants, grad_table[own], column)

    in_threads(run, levels, thread_count(len(x)))
    return torch.from_numpy(grad_table)


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


def by_points(run, levels: list[tuple], points: int) -> None:
    """Call `run` with each level and each thread's share of the points."""

    def share(start, stop):
        for level in levels:
            run(*level, start, stop)

    threads = thread_count(points)
    bounds = np.linspace(0, points, threads + 1).astype(int)
    in_threads(share, itertools.pairwise(bounds), threads)


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
