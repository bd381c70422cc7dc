"""Group norm and SiLU of float16 images on CUDA devices: one pass over memory for the moments and
one for the result, channels innermost, as convolutions on GPUs want them (torch's own norm turns
such images around, which costs more than the convolutions do)."""

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import cuda_program
from ..geometry.cuda_program import Program

SOURCE = Path(__file__).with_name("norm_silu.cu")
THREADS, WIDE = 256, 8  # of a block; channels of a thread, as in norm_silu.cu
BLOCKS = 1056  # as many as an H200 runs at once
WARP = 32


def fits(x: Float[Tensor, "N C H W"], groups: int) -> bool:
    """Whether the kernels can take these images."""
    channels = x.shape[1]
    return (
        x.is_cuda
        and x.dtype == torch.float16
        and channels % WIDE == channels % groups == 0
        and THREADS % (channels // WIDE) == 0
        and cuda_program.is_usable(x.device)
    )


class CudaNormSilu(torch.autograd.Function):
    """silu(group_norm(x)), or without silu, with a gradient for x alone; keeps x."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu):
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, rows = x.shape[0], x.shape[1], x.shape[2:].numel()
        kernels = program(channels, groups, x.device)
        blocks = blocks_of(rows, n)
        partial = x.new_empty(2, n, blocks, channels, dtype=torch.float32)
        moments = x.new_empty(n, groups, 2, dtype=torch.float32)
        out = torch.empty_like(x)
        kernels.launch("partial_moments", (blocks, n), (THREADS,), x, rows, partial)
        finish = (x, rows, partial, blocks, eps, moments)
        kernels.launch("finish_moments", (groups, n), (WARP,), *finish)
        result = (x, rows, moments, weight, bias, int(silu), out)
        kernels.launch("apply", (blocks, n), (THREADS,), *result)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.silu = int(silu)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, moments = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        n, channels, rows = x.shape[0], x.shape[1], x.shape[2:].numel()
        groups = moments.shape[1]
        kernels = program(channels, groups, x.device)
        blocks = blocks_of(rows, n)
        partial = x.new_empty(2, n, blocks, channels, dtype=torch.float32)
        slopes, out = torch.empty_like(moments), torch.empty_like(x)
        norm = (moments, weight, bias)
        sums = (x, grad, rows, *norm, ctx.silu, partial)
        kernels.launch("partial_gradient", (blocks, n), (THREADS,), *sums)
        finish = (rows, partial, blocks, moments, weight, slopes)
        kernels.launch("finish_gradient", (groups, n), (WARP,), *finish)
        result = (x, grad, rows, *norm, slopes, ctx.silu, out)
        kernels.launch("apply_gradient", (blocks, n), (THREADS,), *result)
        return out, None, None, None, None, None


def blocks_of(rows: int, n: int) -> int:
    """Blocks for each of n images."""
    return max(1, min(-(-rows // WARP), BLOCKS // n))


@functools.cache
def program(channels: int, groups: int, device: torch.device) -> Program:
    lines = f"#define CHANNELS {channels}\n#define GROUPS {groups}\n"
    return Program(lines + SOURCE.read_text(), device)
