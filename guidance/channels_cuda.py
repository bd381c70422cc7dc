"""What happens to float16 images between convolutions and attention, on CUDA devices, channels
innermost, as both want them there (torch's own norm turns such images around, which costs more
than the convolutions do): the bias of one, group norm and SiLU, the sum with a residual, GEGLU.

The norm takes one pass over memory for its moments and one for its result. A number a channel that
is added before it or to a sum needs no pass of its own.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels import cuda_program
from ..kernels.cuda_program import Program, architecture_of, code_of, source_of

SOURCE = Path(__file__).with_name("channels.cu")
THREADS, WIDE = 256, 8  # of a block, about; channels of a thread, as in channels.cu
AT_ONCE, PROCESSORS = 512, 132  # threads of a multiprocessor that sum up; an H200's
ROWS = 4  # that such a thread takes at least, where there are so many
BLOCKS = 8448  # at most, of threads that don't
MOST = 4096  # channels of a layer norm
FINISH = (32, 8)  # threads of a block that finishes a group: 8 warps
NORM = (32, 4)  # ... and that norms rows


def fits(x: Tensor, channels: int, groups: int = 1) -> bool:
    """Whether the kernels can take x, which has so many channels."""
    return (
        x.is_cuda
        and x.dtype == torch.float16
        and channels % WIDE == channels % groups == 0
        and channels // WIDE <= 1024
        and cuda_program.is_usable(x.device)
    )


class CudaNormSilu(torch.autograd.Function):
    """silu(group_norm(x + offset)), or without silu, with a gradient for x alone; keeps x.

    offset: [N C], [1 C] or None.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu, offset):
        x = x.contiguous(memory_format=torch.channels_last)
        sizes, kernels = Sizes(x, groups), program(x.shape[1], groups, x.device)
        partial = sizes.partial_sums(x)
        moments = x.new_empty(sizes.n, groups, 2, dtype=torch.float32)
        out = torch.empty_like(x)
        added = of_each_image(offset)
        kernels.launch("partial_moments", *sizes.launch, x, sizes.rows, *added, partial)
        finish = (x, sizes.rows, partial, sizes.blocks, eps, *added, moments)
        kernels.launch("finish_moments", (groups, sizes.n), FINISH, *finish)
        result = (x, sizes.rows, moments, weight, bias, *added, int(silu), out)
        kernels.launch("apply", *sizes.launch, *result)
        ctx.save_for_backward(x, weight, bias, moments, offset)
        ctx.silu = int(silu)
        return out

    @staticmethod
    def backward(ctx, *grads):
        return gradients_of_norm(ctx, grads[0], None)[0], *[None] * 6


class CudaForkedNormSilu(torch.autograd.Function):
    """... of an image, or of two with their channels behind each other, and x once more, for who
    else wants it: its gradient from there is added on the way."""

    @staticmethod
    def forward(ctx, weight, bias, groups, eps, silu, *parts):
        ctx.set_materialize_grads(False)
        ctx.widths = [part.shape[1] for part in parts]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return CudaNormSilu.forward(ctx, x, weight, bias, groups, eps, silu, None), x

    @staticmethod
    def backward(ctx, *grads):
        grad, beside = grads
        return *[None] * 5, *gradients_of_norm(ctx, grad, beside, ctx.widths)


def gradients_of_norm(
    ctx: Any, grad: Tensor, beside: Tensor | None, widths: Sequence[int] = ()
) -> list[Tensor]:
    """A norm's gradient in x and `beside`; in the parts of x that have so many channels, where
    there are two."""
    x, weight, bias, moments, offset = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)
    if beside is not None:
        beside = beside.contiguous(memory_format=torch.channels_last)
    groups = moments.shape[1]
    sizes, kernels = Sizes(x, groups), program(x.shape[1], groups, x.device)
    partial = sizes.partial_sums(x)
    slopes = torch.empty_like(moments)
    norm = (moments, weight, bias, *of_each_image(offset))
    sums = (x, grad, sizes.rows, *norm, ctx.silu, partial)
    kernels.launch("partial_gradient", *sizes.launch, *sums)
    finish = (sizes.rows, partial, sizes.blocks, moments, slopes)
    kernels.launch("finish_gradient", (groups, sizes.n), FINISH, *finish)
    parts = [torch.empty_like(part) for part in x.split(list(widths) or x.shape[1], 1)]
    rest = parts[1] if len(parts) > 1 else None
    result = (x, grad, sizes.rows, *norm, slopes, ctx.silu, beside)
    outs = (parts[0], parts[0].shape[1], rest)
    kernels.launch("apply_gradient", *sizes.launch, *result, *outs)
    return parts


def add_bias(x: Float[Tensor, "N C H W"], bias: Float[Tensor, " C"]) -> None:
    """Adds it in place; x has its channels innermost."""
    sizes = Sizes(x)
    program(x.shape[1], 0, x.device).launch("add_bias", *sizes.launch, x, sizes.rows, bias)


class CudaPlus(torch.autograd.Function):
    """x + y + bias [1 C], with gradients for x and y alone."""

    @staticmethod
    def forward(ctx, x, y, bias):
        x, y = (image.contiguous(memory_format=torch.channels_last) for image in (x, y))
        sizes, out = Sizes(x), torch.empty_like(x)
        kernels = program(x.shape[1], 0, x.device)
        kernels.launch("plus", *sizes.launch, x, y, sizes.rows, bias, out)
        return out

    @staticmethod
    def backward(ctx, *grads):
        # a part of a larger image's is copied here, or else by each who takes it
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        return grad, grad, None


class CudaLayerNorm(torch.autograd.Function):
    """x + added, or x itself where that is None, and its layer norm [*N C]; with gradients for x
    and what is added alone, both results' in one; keeps the sum."""

    @staticmethod
    def forward(ctx, x, added, weight, bias, eps):
        x = x.contiguous()
        added = None if added is None else added.contiguous()
        total, out = x if added is None else torch.empty_like(x), torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        moments = x.new_empty(rows, 2, dtype=torch.float32)
        arguments = x, added, rows, weight, bias, float(eps), total, moments, out
        of_rows("layer_norm", x, rows, arguments)
        ctx.save_for_backward(total, weight, moments)
        ctx.adds = added is not None
        return total, out

    @staticmethod
    def backward(ctx, *grads):
        of_total, grad = (grad.contiguous() for grad in grads)
        total, weight, moments = ctx.saved_tensors
        rows, out = len(moments), torch.empty_like(total)
        arguments = total, grad, of_total, rows, weight, moments, out
        of_rows("layer_norm_gradient", total, rows, arguments)
        return out, out if ctx.adds else None, None, None, None


def of_rows(kernel: str, x: Float[Tensor, "*N C"], rows: int, arguments: tuple) -> None:
    """Runs a kernel of which a warp takes a row, or more."""
    grid = (-(-rows // NORM[1]),)
    program(x.shape[-1], 0, x.device).launch(kernel, grid, NORM, *arguments)


class CudaGeglu(torch.autograd.Function):
    """Values times gelu of the gates, which follow them: [N T 2 C] -> [N T C]; keeps its input."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        sizes, kernels = geglu_sizes(out)
        kernels.launch("geglu", *sizes.launch, x, sizes.rows, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (x,) = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(x)
        sizes, kernels = geglu_sizes(grad)
        kernels.launch("geglu_gradient", *sizes.launch, x, grad, sizes.rows, out)
        return out


def geglu_sizes(out: Float[Tensor, "N T C"]) -> tuple["Sizes", Program]:
    sizes = Sizes(out.permute(2, 0, 1)[None])  # one image
    return sizes, program(out.shape[-1], 0, out.device)


def of_each_image(offset: Float[Tensor, "#N C"] | None) -> tuple[Tensor | None, int]:
    """An offset as the kernels take it: numbers, a row's beside each other, and how many there are
    to the next image's."""
    if offset is None:
        return None, 0
    return offset, 0 if len(offset) == 1 else offset.stride(0)


class Sizes:
    """How images are shared among blocks of threads."""

    def __init__(self, x: Float[Tensor, "N C H W"], groups: int = 0):
        self.n, channels, *sides = x.shape
        self.rows, self.groups = sides[0] * sides[1], groups
        at_once, threads = block_rows(channels), block_threads(channels)
        least, most = 1, BLOCKS
        if groups:  # sums: as few as fill the GPU
            least, most = ROWS, PROCESSORS * blocks_beside(channels)
        self.blocks = max(1, min(-(-self.rows // (least * at_once)), most // self.n))
        self.launch = (self.blocks, self.n), (threads,)

    def partial_sums(self, x: Tensor) -> Float[Tensor, "2 N groups blocks"]:
        return x.new_empty(2, self.n, self.groups, self.blocks, dtype=torch.float32)


def block_rows(channels: int) -> int:
    """Rows that a block takes at a time."""
    return max(1, THREADS // (channels // WIDE))


def block_threads(channels: int) -> int:
    return block_rows(channels) * (channels // WIDE)


def blocks_beside(channels: int) -> int:
    """Blocks of a multiprocessor that sum up."""
    return max(1, AT_ONCE // block_threads(channels))


@functools.cache
def program(channels: int, groups: int, device: torch.device) -> Program:
    """Group norm's kernels; without groups the others."""
    return Program(source(channels, groups), device)


def source(channels: int, groups: int) -> str:
    sizes = {"CHANNELS": channels, "GROUPS": groups, "THREADS": block_threads(channels)}
    return source_of(SOURCE, sizes | {"BLOCKS": blocks_beside(channels)})


def compile_ahead(network: nn.Module) -> None:
    """Begins to compile what a network's layers will ask for, beside all that comes before they
    do."""
    weight = next(network.parameters())
    for channels, groups in sorted(sizes_of(network)):
        if fits(weight, channels, groups or 1):
            code_of(source(channels, groups), architecture_of(weight.device))


def sizes_of(network: nn.Module) -> set[tuple[int, int]]:
    """Channels and groups of its layers' programs."""
    found = set()
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            found.add((layer.num_channels, layer.num_groups))
        elif isinstance(layer, nn.LayerNorm) and layer.normalized_shape[-1] <= MOST:
            found.add((layer.normalized_shape[-1], 0))
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            found.add((layer.out_channels, 0))
        elif type(layer).__name__ == "GEGLU":
            projection: Any = layer.proj
            found.add((projection.out_features // 2, 0))
    return found
