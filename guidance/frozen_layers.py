"""Layers and blocks of networks whose weights are frozen: no gradients but those of their inputs.

Autograd keeps each convolution's input for the gradient of its weight, which nobody asks for here,
and both the norm and the activation before it. These keep one tensor a convolution, that before the
norm, and make the rest anew in the backward pass, where it costs a pass over memory and no
convolution. What is added to every pixel alike, a convolution's bias and the time embedding, goes
into the norm or the sum that follows.

On a GPU, at half precision, norms, sums and biases are kernels (channels.cu) for images that have
their channels innermost.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import channels_cuda

Block = Any  # a module of diffusers, of any version, whose parts are known by their names


CONVOLUTIONS = {  # by the weight's dimensions: the convolution, and what its gradient is
    4: (F.conv2d, F.conv_transpose2d),
    5: (F.conv3d, F.conv_transpose3d),
}
Options = tuple[Any, Any, Any, int]  # stride, padding, dilation (each side's) and groups


class FrozenConvolution(torch.autograd.Function):
    """F.conv2d or F.conv3d with a gradient for its input alone; keeps nothing but the weight.

    turned: the weight as the gradient wants it (`turn`), or None.
    """

    @staticmethod
    def forward(ctx, x, weight, turned, bias, options):
        ctx.save_for_backward(weight, turned)
        ctx.sides, ctx.options = x.shape[2:], options
        return biased(CONVOLUTIONS[weight.ndim][0], x, weight, bias, options)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        weight, turned = ctx.saved_tensors
        convolution, transposed = CONVOLUTIONS[weight.ndim]
        if turned is not None:
            sides = [k - 1 - p for k, p in zip(weight.shape[2:], ctx.options[1], strict=True)]
            grad = convolution(grad, turned, padding=sides)
        else:
            stride, padding, dilation, groups = ctx.options
            left = left_over(ctx.sides, grad.shape[2:], weight.shape[2:], ctx.options)
            grad = transposed(grad, weight, None, stride, padding, left, groups, dilation)
        return grad, None, None, None, None


def biased(
    convolution: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Options,
) -> Tensor:
    """The convolution. torch adds a bias in a pass of its own, and takes three times as long for it
    as our kernel (H200, PyTorch 2.11, channels_last)."""
    if bias is None or weight.ndim != 4 or not channels_cuda.fits(weight, len(weight)):
        return convolution(x, weight, bias, *options)
    out = convolution(x, weight, None, *options).contiguous(memory_format=torch.channels_last)
    channels_cuda.add_bias(out, bias)
    return out


def left_over(
    sides: torch.Size, of_grad: torch.Size, kernel: torch.Size, options: Options
) -> list[int]:
    """Pixels at an image's ends that no stride of a convolution reached: a transposed one, which
    has the gradient, is told how many there are. (torch.nn.grad, which asks for the image's size,
    brings a gradient with its channels innermost into another order and back, PyTorch 2.11.)"""
    stride, padding, dilation, _ = options
    reached = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, s, p, d, k in zip(of_grad, stride, padding, dilation, kernel, strict=True)
    ]
    return [side - there for side, there in zip(sides, reached, strict=True)]


def turn(layer: nn.Conv2d | nn.Conv3d) -> Float[Tensor, "C D *k"] | None:
    """The weight with which a convolution's gradient is a convolution too; None where it isn't.

    With cuDNN's own kernels for this gradient a backward pass took three times a forward one (H200,
    PyTorch 2.11, channels_last).
    """
    plain = set(layer.stride) == set(layer.dilation) == {1} and layer.groups == 1
    if not plain or isinstance(layer.padding, str):
        return None
    weight = layer.weight.detach()
    turned = weight.transpose(0, 1).flip(*range(2, weight.ndim))
    return turned.contiguous(memory_format=format_of(layer.weight))


def format_of(weight: Tensor) -> torch.memory_format:
    innermost = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    last = weight.is_contiguous(memory_format=innermost) and not weight.is_contiguous()
    return innermost if last else torch.contiguous_format


def turn_over(convolutions: Iterable[Block]) -> None:
    """Turns the weights by 180 degrees, in place: of images that lie upside down they make what
    they made of upright ones, upside down.

    The zeros that downsampling wants behind an image's last row and column are in front of the
    first ones then, where a convolution can have them by itself (`halve`): upright, every image
    would be copied for their sake, and so would its gradient.
    """
    for layer in convolutions:
        weight = layer.weight.detach()
        layer.weight.data = weight.flip(-2, -1).contiguous(memory_format=format_of(weight))


def halve(layer: nn.Conv2d, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
    """A convolution of 3 x 3 pixels and stride 2, after `turn_over`, of images upside down which
    upright have a row and a column of zeros behind the others."""
    padding = tuple(1 - side % 2 for side in x.shape[2:])  # an odd side needs no zeros
    options = (layer.stride, padding, layer.dilation, layer.groups)
    return FrozenConvolution.apply(x, layer.weight, None, layer.bias, options)


class FrozenNormSilu(torch.autograd.Function):
    """silu(group_norm(x)) with a gradient for x alone; keeps x and the groups' moments."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        x = x.contiguous()
        normed, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes(x), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(normed, inplace=True)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed = torch.native_group_norm(x, weight, bias, *sizes(x), ctx.groups, ctx.eps)[0]
        # the next operation takes it for laid out as x, and asks nothing
        grad = torch.ops.aten.silu_backward(grad, normed).contiguous()
        del normed
        grad = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, rstd, weight, *sizes(x), ctx.groups, [True, False, False]
        )[0]
        return grad, None, None, None, None


def sizes(x: Float[Tensor, "N C H W"]) -> tuple[int, int, int]:
    """N, C and H * W, as the norm's kernels want them."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def convolve(
    layer: nn.Conv2d, x: Float[Tensor, "N C H W"], biased: bool = True
) -> Float[Tensor, "N D h w"]:
    """The convolution; its gradient is quick where the layer has `turn` as its `turned`."""
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    bias = layer.bias if biased else None
    return FrozenConvolution.apply(x, layer.weight, getattr(layer, "turned", None), bias, options)


def give_turned(layer: nn.Conv2d) -> None:
    """Makes a frozen layer ready for `convolve`, and that its forward, in place."""
    layer.register_buffer("turned", turn(layer), persistent=False)
    layer.forward = functools.partial(convolve, layer)  # pyright: ignore[reportAttributeAccessIssue]


def convolve_first(
    layer: nn.Conv2d, x: Float[Tensor, "N C H W"]
) -> tuple[Float[Tensor, "N D h w"], Float[Tensor, "1 D"] | None]:
    """The convolution, and a bias that is still to be added; a CPU adds it as it convolves."""
    if not x.is_cuda or layer.bias is None:
        return convolve(layer, x), None
    return convolve(layer, x, biased=False), layer.bias[None]


def total(*parts: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    there = [part for part in parts if part is not None]
    return functools.reduce(operator.add, there) if there else None


def norm(
    layer: nn.GroupNorm,
    x: Float[Tensor, "N C H W"],
    silu: bool = False,
    offset: Float[Tensor, "#N C"] | None = None,
) -> Float[Tensor, "N C H W"]:
    """The norm of x + offset, and its activation."""
    parameters = layer.weight, layer.bias, layer.num_groups, layer.eps
    if channels_cuda.fits(x, x.shape[1], layer.num_groups):
        return channels_cuda.CudaNormSilu.apply(x, *parameters, silu, offset)
    x = x if offset is None else x + offset[:, :, None, None]
    if silu:
        return FrozenNormSilu.apply(x, *parameters)
    return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)


def forked_norm(
    layer: nn.GroupNorm, *parts: Float[Tensor, "N _ H W"], silu: bool = True
) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
    """The norm of x and its activation, and x, which something else takes as well. x is an image,
    or two with their channels behind each other."""
    channels = sum(part.shape[1] for part in parts)
    wanted = any(part.requires_grad for part in parts)
    first = parts[0]
    if (
        wanted
        and channels_cuda.fits(first, channels, layer.num_groups)
        and channels_cuda.fits(first, first.shape[1])
    ):
        settings = layer.weight, layer.bias, layer.num_groups, layer.eps, silu
        return channels_cuda.CudaForkedNormSilu.apply(*settings, *parts)
    x = first if len(parts) == 1 else torch.cat(parts, 1)
    return norm(layer, x, silu), x


def layer_norm(
    layer: nn.LayerNorm,
    x: Float[Tensor, "*N C"],
    added: Float[Tensor, "*N C"] | None = None,
) -> tuple[Float[Tensor, "*N C"], Float[Tensor, "*N C"]]:
    """x + added, or x itself, and its norm."""
    if channels_cuda.fits(x, x.shape[-1]) and x.shape[-1] <= channels_cuda.MOST:
        return channels_cuda.CudaLayerNorm.apply(x, added, layer.weight, layer.bias, layer.eps)
    x = x if added is None else x + added
    return x, layer(x)


def plus(
    x: Float[Tensor, "N C H W"], y: Float[Tensor, "N C H W"], bias: Float[Tensor, "1 C"] | None
) -> Float[Tensor, "N C H W"]:
    """x + y + bias."""
    if bias is None:
        return x + y
    if channels_cuda.fits(x, x.shape[1]):
        return channels_cuda.CudaPlus.apply(x, y, bias)
    return x + y + bias[:, :, None, None]


def is_plain(block: Block) -> bool:
    """Whether `resnet` does what diffusers' ResnetBlock2D would."""
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm == "default"
        and block.output_scale_factor == 1
        and block.upsample is None
        and block.downsample is None
    )


def resnet(
    block: Block,
    input_tensor: Float[Tensor, "N _ H W"],  # by diffusers' name for it
    temb: Any = None,  # [N E] where the block projects it
    skip: Float[Tensor, "N _ H W"] | None = None,
    **_scale: float,
) -> Float[Tensor, "N D H W"]:
    """The forward of diffusers' ResnetBlock2D (some versions hand over LoRA's scale as well).

    skip: the channels of its input behind the others, which are another image then.
    """
    parts = (input_tensor,) if skip is None else (input_tensor, skip)
    normed, x = forked_norm(block.norm1, *parts)
    part = getattr(block, "time_part", None)  # of what all blocks add (frozen_time.py)
    if part is not None:
        h, offset = convolve(block.conv1, normed, biased=False), temb[:, part]
    else:
        h, bias = convolve_first(block.conv1, normed)
        time = None if block.time_emb_proj is None else block.time_emb_proj(F.silu(temb))
        offset = total(bias, time)
    h = norm(block.norm2, h, silu=True, offset=offset)
    h, bias = convolve_first(block.conv2, h)
    if block.conv_shortcut is not None:
        x, others = convolve_first(block.conv_shortcut, x)
        bias = total(bias, others)
    return plus(x, h, bias)
