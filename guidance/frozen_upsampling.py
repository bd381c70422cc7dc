"""Doubling an image's sides and convolving it, of networks whose weights are frozen.

A pixel that stands there four times is multiplied by three rows and columns of a weight of which
two meet the same pixel, so their sum can stand in for them: 4 products a pixel in the place of 9,
and the large image isn't there before the convolution. Its gradient is a convolution of the large
image, of every second row and column.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .frozen_layers import Block, format_of

# which rows of the weight meet the two rows of the small image that an even or an odd row of the
# large one looks at; and the four rows of the large one that look at a row of the small one
MEET = ([[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]])
LOOK = [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]


class FrozenUpsampling(torch.autograd.Function):
    """conv2d(x with each pixel four times, weight, bias, padding=1), with a gradient for x alone.

    weights: [4 D C 2 2], of even and odd rows and columns; looking: [C D 4 4] (`sums_of`).
    """

    @staticmethod
    def forward(ctx, x, weights, looking, bias):
        ctx.save_for_backward(looking)
        n, _, height, width = x.shape
        innermost = x.new_empty(n, 2 * height, 2 * width, weights.shape[1])
        out = innermost.permute(0, 3, 1, 2)
        added = 0 if bias is None else bias[:, None, None]
        for i, weight in enumerate(weights):
            row, column = divmod(i, 2)
            part = F.conv2d(x, weight, padding=1)  # a row and a column more than asked for
            part = part[..., row : row + height, column : column + width]
            torch.add(part, added, out=out[..., row::2, column::2])
        return out

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (looking,) = ctx.saved_tensors
        return F.conv2d(grad, looking, stride=2, padding=1), None, None, None


def sums_of(
    weight: Float[Tensor, "D C 3 3"],
) -> tuple[Float[Tensor, "4 D C 2 2"], Float[Tensor, "C D 4 4"]]:
    """A weight as `FrozenUpsampling` wants it, forward and for the gradient."""
    exact = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    meet, look = (torch.tensor(rows).to(exact) for rows in (MEET, LOOK))
    forward = torch.einsum("arp,bsq,dcpq->abdcrs", meet, meet, exact).flatten(0, 1)
    gradient = torch.einsum("rp,sq,dcpq->cdrs", look, look, exact)
    layout = format_of(weight)
    parts = [part.to(weight.dtype).contiguous(memory_format=layout) for part in forward]
    return torch.stack(parts), gradient.to(weight.dtype).contiguous(memory_format=layout)


def doubles(layer: Block) -> bool:
    """Whether `upsample` does what diffusers' Upsample2D would."""
    convolution = getattr(layer, "conv", None)
    return (
        type(layer).__name__ == "Upsample2D"
        and isinstance(convolution, nn.Conv2d)
        and (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
        and convolution.stride == convolution.dilation == (1, 1)
        and (convolution.groups, convolution.padding_mode) == (1, "zeros")
        and getattr(layer, "norm", None) is None
        and getattr(layer, "interpolate", True)
        and not layer.use_conv_transpose
    )


def prepare_doubling(layer: Block) -> None:
    """Gives a layer of diffusers, in place, this file's forward and what that needs."""
    meeting, looking = sums_of(layer.conv.weight)
    layer.register_buffer("meeting", meeting, persistent=False)
    layer.register_buffer("looking", looking, persistent=False)
    layer.conv.turned = None  # a gradient that is asked for no more
    layer.forward = partial(upsample, layer)


def upsample(
    layer: Block,
    hidden_states: Float[Tensor, "N C h w"],
    output_size: Any = None,
    *_scale: float,
) -> Float[Tensor, "N D H W"]:
    """The forward of diffusers' Upsample2D, unless it is told a size (`output_size`)."""
    if output_size is not None:
        return type(layer).forward(layer, hidden_states, output_size)
    bias = layer.conv.bias
    return FrozenUpsampling.apply(hidden_states, layer.meeting, layer.looking, bias)
