"""silu(x / |x| * gain + bias), |x| over the channels, and its gradient in x, on CUDA devices: one
pass over memory each (rms_norm.cu). frozen_wan_vae.NormSilu is the definition.

Clips have their channels innermost, as convolutions want them there; others are turned around.
"""

import functools
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, source_of

Clips = Float[Tensor, "B C F H W"]
SOURCE = Path(__file__).with_name("rms_norm.cu")
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as rms_norm.cu numbers them
BYTES = 16  # of a vector, where the channels divide into such
VECTORS = 3  # of a thread, where 32 threads are enough for that
THREADS, BLOCKS = 256, 1056  # of a block; blocks: a few for each of an H200's 132 processors
MOST_CHANNELS = 1024  # what a pixel's threads hold in registers


def fits(x: Clips, gain: Float[Tensor, "C 1 1 1"]) -> bool:
    """Whether the kernels can take x. Where they can't be built, a warning says so, once."""
    return (
        x.is_cuda
        and x.dtype in KINDS
        and gain.dtype == torch.float32
        and 0 < x.shape[1] <= MOST_CHANNELS
        and 0 < x.numel() // x.shape[1] < 2**30
        and cuda_program.is_usable(x.device)
        and works(x.shape[1], x.dtype, x.device)
    )


class CudaNormSilu(torch.autograd.Function):
    """silu(x / |x| * gain + bias) with a gradient for x alone; keeps x."""

    @staticmethod
    def forward(ctx, x, gain, bias):
        x = innermost(x)
        ctx.save_for_backward(x, gain, bias)
        return launch("forward", x, gain, bias)

    @staticmethod
    def backward(ctx, *grads):
        x, gain, bias = ctx.saved_tensors
        return launch("backward", x, gain, bias, innermost(grads[0])), None, None


def innermost(x: Clips) -> Clips:
    """x with its channels innermost, where a vector of them can be read at once."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return x if x.data_ptr() % BYTES == 0 else x.clone()


def launch(name: str, x: Clips, gain: Tensor, bias: Tensor, *grads: Tensor) -> Clips:
    """What a kernel makes of x and, for its gradient, of that of its output."""
    kernels = program(x.shape[1], x.dtype, x.device)
    out = torch.empty_like(x, memory_format=torch.channels_last_3d)
    rows = x.numel() // x.shape[1]
    at_once = THREADS // sizes(x.shape[1], x.dtype)["LANES"]
    grid = (min(-(-rows // at_once), BLOCKS),)
    kernels.launch(name, grid, (THREADS,), x, *grads, rows, gain, bias, out)
    return out


def sizes(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """How a pixel is shared among threads: WIDE channels a vector, LANES threads."""
    wide = BYTES // (torch.finfo(dtype).bits // 8)
    while channels % wide:
        wide //= 2
    lanes = 1
    while lanes < 32 and lanes * VECTORS < channels // wide:
        lanes *= 2
    return {"CHANNELS": channels, "WIDE": wide, "LANES": lanes, "THREADS": THREADS}


@functools.cache
def works(channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels do, tried once; if not, a warning says why."""
    try:
        x = torch.zeros(1, channels, 1, 1, 1, dtype=dtype, device=device)
        numbers = torch.zeros(channels, device=device)
        launch("forward", x, numbers, numbers)
        launch("backward", x, numbers, numbers, x)
        torch.cuda.synchronize(device)
    except Exception as error:
        warnings.warn(
            f"Norms of {channels} channels have no CUDA kernel on {device} "
            f"({type(error).__name__}: {error}); torch's operations stand in, which are slower.",
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def program(channels: int, dtype: torch.dtype, device: torch.device) -> Program:
    constants = {**sizes(channels, dtype), "KIND": KINDS[dtype]}
    return Program(source_of(SOURCE, constants), device)
