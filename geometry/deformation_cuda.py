"""Deformed points on CUDA devices: one kernel forward, one backward, for all moments of a clip.

In float32. What torch does for a clip of 16 frames are hundreds of calls, and products of a 3 x 3
matrix with millions of rows, for which its kernels weren't made.
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, source_of

SOURCE = Path(__file__).with_name("deformation.cu")
THREADS = 256  # of a block, as in deformation.cu


def fits(x: Tensor, table: Tensor) -> bool:
    """Whether the kernels can take these points, which get no gradient, and lattices."""
    return (
        x.is_cuda
        and x.device == table.device
        and x.dtype == table.dtype == torch.float32
        and not x.requires_grad
        and cuda_program.is_usable(x.device)
    )


def moved_back(
    x: Float[Tensor, "N 3"],
    counts: Sequence[int],
    turn: Float[Tensor, "T 3 3"],
    shift: Float[Tensor, "T 3"],
    table: Float[Tensor, "T 3 R R R"],
) -> Float[Tensor, "N 3"]:
    """deformation.py's."""
    beside = turn - torch.eye(3, device=turn.device)
    whole = torch.cat([beside.flatten(1), shift], dim=1)
    starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    starts = starts.to(x.device, non_blocking=True)
    return CudaDeformation.apply(x.contiguous(), starts, max(counts, default=0), whole, table)


class CudaDeformation(torch.autograd.Function):
    """starts [T + 1]: each run's first point, and the end; longest: of the runs; whole [T 12]."""

    @staticmethod
    def forward(ctx, x, starts, longest, whole, table):
        ctx.save_for_backward(x, starts, whole, table)
        ctx.longest = longest
        out = x.new_empty(x.shape)
        run("forward", starts, longest, x, whole.detach(), table.detach(), out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, starts, whole, table = ctx.saved_tensors
        # not zeros_like, which would lie in memory as a table does that isn't contiguous
        grads = whole.new_zeros(whole.shape), table.new_zeros(table.shape)
        run("backward", starts, ctx.longest, x, whole, table, grad.contiguous(), *grads)
        return None, None, None, *grads


def run(
    name: str,
    starts: Int[Tensor, " T1"],
    longest: int,
    x: Tensor,
    whole: Tensor,
    table: Tensor,
    *tensors: Tensor,
) -> None:
    if longest == 0:
        return
    blocks = -(-longest // THREADS), len(starts) - 1
    arguments = x, starts, whole.contiguous(), table.contiguous(), *tensors
    program(table.shape[-1], x.device).launch(name, blocks, (THREADS,), *arguments)


@functools.cache
def program(nodes: int, device: torch.device) -> Program:
    return Program(source_of(SOURCE, {"NODES": nodes}), device)
