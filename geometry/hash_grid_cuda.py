"""The hash grid on CUDA devices, for two features a level: a kernel forward, one a gradient.

For points, for points and their finite-difference neighbours at once, and for the table of one
frame's grid.
"""

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, source_of
from .frame_table import frame_spec
from .gradients import gradients_again
from .hash_grid_torch import GridSpec, Level, hash_grid_torch
from .stencil import neighbours

SOURCES = Path(__file__).parent
FEATURES = 2  # a level has in the kernels, 8 bytes read or added at once
BLOCK = (32, 16)  # at most so many samples x levels, which share the samples' rows of memory
RUN = 4  # samples that a thread takes one after the other on the way to the table
THREADS = 256  # of a block over a table's entries


def fits(x: Tensor, table: Tensor, spec: GridSpec) -> bool:
    return (
        x.is_cuda
        and x.dtype == table.dtype == torch.float32
        and spec.n_features_per_level == FEATURES
        and cuda_program.is_usable(x.device)
    )


def hash_grid_cuda(
    x: Float[Tensor, "N D"], table: Float[Tensor, " M"], spec: GridSpec
) -> Float[Tensor, "N E"]:
    check(x, table, spec)
    return CudaHashGrid.apply(x, table, spec, None)[0]


def stencil_cuda(
    x: Float[Tensor, "N D"], step: float, table: Float[Tensor, " M"], spec: GridSpec
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 6 E"]]:
    check(x, table, spec)
    return CudaHashGrid.apply(x, table, spec, step)


def check(x: Tensor, table: Tensor, spec: GridSpec) -> None:
    check_table(table, spec)
    if x.device != table.device or x.dtype != table.dtype:
        raise ValueError(
            f"The CUDA hash grid wants points and table on one device and of one float type; "
            f"points are {x.dtype} on {x.device}, the table is {table.dtype} on {table.device}."
        )


def check_table(table: Tensor, spec: GridSpec) -> None:
    if table.device.type != "cuda" or table.dtype != torch.float32:
        raise ValueError(
            f"The CUDA hash grid wants a float32 table on a CUDA device; it is {table.dtype} on "
            f"{table.device}. Try backend 'auto'."
        )
    if spec.n_features_per_level != FEATURES:
        raise ValueError(
            f"The CUDA hash grid has {FEATURES} features a level, but {spec} came. "
            f"Try backend 'auto' or 'torch'."
        )


class CudaHashGrid(torch.autograd.Function):
    """Features of the points [N E], and those of their neighbours [N 6 E] if a step is given."""

    @staticmethod
    def forward(ctx, x, table, spec, step):
        # a table that only gets a gradient isn't held until then: a frame's is large
        ctx.save_for_backward(x, table if ctx.needs_input_grad[0] else None)
        ctx.spec, ctx.step = spec, step
        shapes: list[tuple[int, ...]] = [(len(x), spec.n_output_dims)]
        if step is not None:
            shapes.append((len(x), 6, spec.n_output_dims))
        outputs = [x.new_empty(shape) for shape in shapes]
        run("forward", spec, step, x, table.detach(), outputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        x, table = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            if table is None:  # its gradient doesn't depend on its entries
                table = x.new_zeros(ctx.spec.n_params, requires_grad=True)
            again = functools.partial(definition, spec=ctx.spec, step=ctx.step)
            return *gradients_again(again, (x, table), needed, grads), None, None
        grads = [grad.contiguous() for grad in grads]
        grad_x = x.new_zeros(x.shape) if needed[0] else None
        if grad_x is not None:
            run("backward_to_points", ctx.spec, ctx.step, x, table, grads, grad_x)
        grad_table = x.new_zeros(ctx.spec.n_params) if needed[1] else None
        if grad_table is not None:
            run("backward", ctx.spec, ctx.step, x, grad_table, grads)
        return grad_x, grad_table, None, None


def definition(x: Tensor, table: Tensor, spec: GridSpec, step: float | None) -> tuple[Tensor, ...]:
    own = hash_grid_torch(x.clamp(0, 1), table, spec)
    if step is None:
        return (own,)
    near = neighbours(x, step).flatten(0, 1).clamp(0, 1)
    return own, hash_grid_torch(near, table, spec).unflatten(0, (len(x), 6))


def run(
    name: str,
    spec: GridSpec,
    step: float | None,
    x: Tensor,
    table: Tensor,
    features: list[Tensor],
    *grads: Tensor,
) -> None:
    if len(x) == 0:
        return
    if table.data_ptr() % 16:
        table = table.clone()  # the kernels read pairs of entries
    block = BLOCK[0], min(BLOCK[1], spec.n_levels)
    samples = block[0] * (RUN if name == "backward" else 1)
    blocks = -(-len(x) // samples), -(-spec.n_levels // block[1])
    near = features[1] if len(features) > 1 else None
    arguments = x.contiguous(), len(x), table, float(step or 0), features[0], near, *grads
    program(spec, step is not None, x.device).launch(name, blocks, block, *arguments)


def frame_table_cuda(
    space_table: Float[Tensor, " M3"],
    time_table: Float[Tensor, " M4"],
    tau: Float[Tensor, "1 1"],
    space: GridSpec,
    time: GridSpec,
) -> Float[Tensor, " M"]:
    check_table(space_table, space)
    check_table(time_table, time)
    return CudaFrameTable.apply(space_table, time_table, tau, space, time)


class CudaFrameTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, space_table, time_table, tau, space, time):
        ctx.save_for_backward(tau)
        ctx.specs = space, time
        frame = space_table.new_empty(frame_spec(space).n_params)
        tables = space_table.detach(), time_table.detach()
        run_on_frame("forward", *ctx.specs, tau, *tables, frame)
        return frame

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_frame):
        (tau,) = ctx.saved_tensors
        grads = [
            grad_frame.new_zeros(spec.n_params) if needed else None
            for spec, needed in zip(ctx.specs, ctx.needs_input_grad[:2], strict=True)
        ]
        run_on_frame("backward", *ctx.specs, tau, grad_frame.contiguous(), *grads)
        return *grads, None, None, None


def run_on_frame(
    name: str, space: GridSpec, time: GridSpec, tau: Tensor, *tables: Tensor | None
) -> None:
    largest = max(level.size for level in frame_spec(space).levels)
    blocks = -(-largest // THREADS), space.n_levels
    frame_program(space, time, tau.device).launch(name, blocks, (THREADS,), tau, *tables)


@functools.cache
def program(spec: GridSpec, stencil: bool, device: torch.device) -> Program:
    defines = {"DIMS": spec.dims, "STENCIL": int(stencil), "N_LEVELS": spec.n_levels}
    defines |= {"BLOCK_SAMPLES": BLOCK[0], "BLOCK_LEVELS": BLOCK[1], "RUN": RUN}
    return Program(source("hash_grid.cu", defines, LEVELS=spec), device, SOURCES)


@functools.cache
def frame_program(space: GridSpec, time: GridSpec, device: torch.device) -> Program:
    text = source("frame_table.cu", {}, SPACE=space, TIME=time, FRAME=frame_spec(space))
    return Program(text, device, SOURCES)


def source(file: str, defines: dict[str, int], **grids: GridSpec) -> str:
    """A file's source after the lattice's and the constants that it asks for."""
    lines = ['#include "lattice.cuh"']
    for name, spec in grids.items():
        levels = ",\n".join(map(level_constant, spec.levels))
        lines.append(f"__constant__ Level {name}[] = {{\n{levels}\n}};")
    return source_of(SOURCES / file, defines, *lines)


def level_constant(level: Level) -> str:
    multipliers = ", ".join(f"{multiplier}u" for multiplier in level.multipliers)
    hashed = str(level.hashed).lower()
    return f"{{{level.scale!r}f, {level.size}u, {level.offset}u, {hashed}, {{{multipliers}}}}}"
