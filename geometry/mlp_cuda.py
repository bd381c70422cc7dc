"""A network of one hidden layer on CUDA devices: one kernel forward, one backward (another where
the weights are frozen).

Exact float32. The hidden layer stays in registers, where torch's own layers write it to memory four
times on the way forward and back, which is most of their time at our widths.
"""

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, source_of
from .gradients import gradients_again

SOURCE = Path(__file__).with_name("mlp.cu")
ROWS = 64  # that a block takes at a time, as in mlp.cu
BLOCKS_PER_PROCESSOR = 6  # as many as fit on an H200's at a time


def fits(x: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether the kernels can take these inputs and weights."""
    hidden, inputs = first.shape
    return (
        x.is_cuda
        and {x.dtype, first.dtype, second.dtype} == {torch.float32}
        and inputs % 8 == 0
        and hidden % 8 == 0
        and max(inputs, hidden) <= 64
        and len(second) <= 4
        and cuda_program.is_usable(x.device)
    )


def two_layers(
    x: Float[Tensor, "N I"], first: Float[Tensor, "H I"], second: Float[Tensor, "O H"]
) -> Float[Tensor, "N O"]:
    """The definition."""
    return torch.relu(x @ first.T) @ second.T


def two_layers_cuda(
    x: Float[Tensor, "N I"], first: Float[Tensor, "H I"], second: Float[Tensor, "O H"]
) -> Float[Tensor, "N O"]:
    return CudaTwoLayers.apply(x, first, second)


class CudaTwoLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, second):
        ctx.save_for_backward(x, first, second)
        out = x.new_empty(len(x), len(second))
        run("forward", x.detach(), first.detach(), second.detach(), out)
        return out

    @staticmethod
    def backward(ctx, grad):
        arguments = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(gradients_again(two_layers, arguments, ctx.needs_input_grad, (grad,)))
        x, first, second = arguments
        grad_x = x.new_empty(x.shape)
        if not any(ctx.needs_input_grad[1:]):
            run("backward_to_input", x, first, second, grad.contiguous(), grad_x)
            return grad_x, None, None
        grads = grad_x, first.new_zeros(first.shape), second.new_zeros(second.shape)
        run("backward", x, first, second, grad.contiguous(), *grads)
        return grads


def run(name: str, x: Tensor, first: Tensor, second: Tensor, *tensors: Tensor) -> None:
    if len(x) == 0:
        return
    device = x.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = min(-(-len(x) // ROWS), BLOCKS_PER_PROCESSOR * processors)
    hidden, inputs = first.shape
    weights = first.contiguous(), second.contiguous()
    program(inputs, hidden, len(second), device).launch(
        name, (blocks,), (64,), x.contiguous(), len(x), *weights, *tensors
    )


@functools.cache
def program(inputs: int, hidden: int, outputs: int, device: torch.device) -> Program:
    sizes = {"INPUTS": inputs, "HIDDEN": hidden, "OUTPUTS": outputs}
    return Program(source_of(SOURCE, sizes), device)
