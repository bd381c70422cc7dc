"""A VAE encoder whose weights are frozen: the same latents and the same gradient from a third of
the memory.

Autograd keeps each convolution's input for the gradient of its weight, which nobody asks for here,
and both the norm and the activation before it. `slim` gives an encoder's layers forwards that keep
one tensor a convolution, that before the norm, and make the rest anew in the backward pass, where
it costs a pass over memory and no convolution. On a GPU, at half precision, images have their
channels innermost, and the norm and the activation are one kernel (norm_silu.cu).

Attention goes through matrix products, one image after another where they are large: PyTorch's
fused kernels are slow for its single head of 512 (at 2 x 16384 tokens on an H200: 7.5 ms forward
and 82 backward, matrix products 3.0 and 5.2).
"""

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from . import norm_silu_cuda

ATTENTION_SCORES = 2**28  # entries that attention holds at once; one image of 1024 x 1024 has that


class FrozenConvolution(torch.autograd.Function):
    """F.conv2d with a gradient for its input alone; keeps nothing but the weight."""

    @staticmethod
    def forward(ctx, x, weight, bias, options):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = x.shape, options
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        if set(stride) == set(dilation) == {1} and groups == 1 and not isinstance(padding, str):
            # a convolution too, by the forward kernels: with cuDNN's own kernels for this gradient
            # a backward pass took three times a forward one (H200, PyTorch 2.11, channels_last)
            turned = weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=format_of(weight))
            sides = [k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True)]
            return F.conv2d(grad, turned, padding=sides), None, None, None
        return torch.nn.grad.conv2d_input(ctx.shape, weight, grad, *ctx.options), None, None, None


def format_of(weight: Tensor) -> torch.memory_format:
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


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
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed = torch.native_group_norm(x, weight, bias, *sizes(x), ctx.groups, ctx.eps)[0]
        grad = torch.ops.aten.silu_backward(grad, normed)
        del normed
        grad = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, rstd, weight, *sizes(x), ctx.groups, [True, False, False]
        )[0]
        return grad, None, None, None, None


def sizes(x: Float[Tensor, "N C H W"]) -> tuple[int, int, int]:
    """N, C and H * W, as the norm's kernels want them."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


class MatrixAttention(torch.autograd.Function):
    """softmax(q k^T scale) v; keeps q, k and v, and makes the probabilities anew for the gradient.

    At half precision probabilities and their gradient are tiny, so the incoming gradient is brought
    to a largest entry of 1 before they are multiplied.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        parts = zip(*(x.split(images_at_once(q)) for x in (q, k, v)), strict=True)
        return torch.cat([probabilities(q, k, scale) @ v for q, k, v in parts])

    @staticmethod
    def backward(ctx, grad):
        split = [x.split(images_at_once(grad)) for x in (*ctx.saved_tensors, grad)]
        grads = [attention_gradient(*part, ctx.scale) for part in zip(*split, strict=True)]
        return *(torch.cat(parts) for parts in zip(*grads, strict=True)), None


def images_at_once(q: Float[Tensor, "N T D"]) -> int:
    return max(1, ATTENTION_SCORES // q.shape[1] ** 2)


def probabilities(
    q: Float[Tensor, "N T D"], k: Float[Tensor, "N T D"], scale: float
) -> Float[Tensor, "N T T"]:
    # the scale belongs to the product, which is rounded after it: float16 doesn't overflow
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    return scores.softmax(dim=-1)


def attention_gradient(
    q: Float[Tensor, "N T D"],
    k: Float[Tensor, "N T D"],
    v: Float[Tensor, "N T D"],
    grad: Float[Tensor, "N T D"],
    scale: float,
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Gradients of q, k and v."""
    largest = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)
    grad = grad / largest
    probability = probabilities(q, k, scale)
    grad_v = probability.transpose(1, 2) @ grad
    of_scores = torch.ops.aten._softmax_backward_data(
        grad @ v.transpose(1, 2), probability, -1, probability.dtype
    )
    del probability
    empty = q.new_empty(1, 1, 1)
    grad_q = torch.baddbmm(empty, of_scores, k, beta=0, alpha=scale)
    grad_k = torch.baddbmm(empty, of_scores.transpose(1, 2), q, beta=0, alpha=scale)
    return grad_q * largest, grad_k * largest, grad_v * largest


class MatrixAttentionProcessor:
    """Self-attention of one head over an image's pixels, as diffusers' `Attention` calls it."""

    def __call__(
        self,
        attn: nn.Module,
        x: Float[Tensor, "N C H W"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "N C H W"]:
        tokens = norm(attn.group_norm, x).flatten(2).transpose(1, 2)
        q, k, v = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        out = attn.to_out[0](MatrixAttention.apply(q, k, v, attn.scale))
        out = out.transpose(1, 2).reshape(x.shape)
        return (out + x if attn.residual_connection else out) / attn.rescale_output_factor


def convolve(layer: nn.Conv2d, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return FrozenConvolution.apply(x, layer.weight, layer.bias, options)


def norm_silu(layer: nn.GroupNorm, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    arguments = (x, layer.weight, layer.bias, layer.num_groups, layer.eps)
    if norm_silu_cuda.fits(x, layer.num_groups):
        return norm_silu_cuda.CudaNormSilu.apply(*arguments, True)
    return FrozenNormSilu.apply(*arguments)


def norm(layer: nn.GroupNorm, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    if not norm_silu_cuda.fits(x, layer.num_groups):
        return layer(x)
    arguments = (x, layer.weight, layer.bias, layer.num_groups, layer.eps)
    return norm_silu_cuda.CudaNormSilu.apply(*arguments, False)


def slim(vae: AutoencoderKL) -> AutoencoderKL:
    """Gives a frozen VAE's encoder the forwards of this file, in place, and drops its decoder."""
    vae.decoder = vae.post_quant_conv = None
    encoder = vae.encoder
    weight = encoder.conv_norm_out.weight
    if norm_silu_cuda.fits(weight[None, :, None, None], encoder.conv_norm_out.num_groups):
        encoder.to(memory_format=torch.channels_last)
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            layer.forward = partial(convolve, layer)
        if isinstance(layer, ResnetBlock2D) and isinstance(layer.nonlinearity, nn.SiLU):
            layer.norm1.forward = partial(norm_silu, layer.norm1)
            layer.norm2.forward = partial(norm_silu, layer.norm2)
            layer.nonlinearity = nn.Identity()
    if isinstance(encoder.conv_act, nn.SiLU):
        encoder.conv_norm_out.forward = partial(norm_silu, encoder.conv_norm_out)
        encoder.conv_act = nn.Identity()
    for attn in encoder.mid_block.attentions:
        if attn is not None and attn.heads == 1 and attn.group_norm is not None:
            attn.set_processor(MatrixAttentionProcessor())
    return vae
