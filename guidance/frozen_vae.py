"""A VAE encoder whose weights are frozen: the same latents and the same gradient from a third of
the memory.

`slim` gives an encoder the layers of frozen_layers.py; on a GPU, at half precision, its images have
their channels innermost.

Attention goes through matrix products, one image after another where they are large: PyTorch's
fused kernels are slow for its single head of 512 (at 2 x 16384 tokens on an H200: 7.5 ms forward
and 82 backward, matrix products 3.0 and 5.2).
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from . import channels_cuda
from .frozen_layers import Block, give_turned, halve, is_plain, norm, resnet, turn_over

DECODER = ("decoder", "post_quant_conv")  # of a VAE, where it has them
# entries that attention holds at once for each image that is there, a quarter of those of one of
# 1024 x 1024
ATTENTION_SCORES = 2**26


class MatrixAttention(torch.autograd.Function):
    """softmax(q k^T scale) v; keeps q, k and v, and makes the probabilities anew for the gradient.

    At half precision probabilities and their gradient are tiny, so the incoming gradient is brought
    to a largest entry of 1 before they are multiplied.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        images, rows = at_once(q)
        parts = zip(*(x.split(images) for x in (q, k, v)), strict=True)
        return torch.cat([in_rows(q, k, v, scale, rows) for q, k, v in parts])

    @staticmethod
    def backward(ctx, *grads):
        tensors = (*ctx.saved_tensors, *grads)
        images, rows = at_once(tensors[0])
        split = zip(*(x.split(images) for x in tensors), strict=True)
        of_parts = [gradient_in_rows(q, k, v, grad, ctx.scale, rows) for q, k, v, grad in split]
        return *(torch.cat(parts) for parts in zip(*of_parts, strict=True)), None


def at_once(q: Float[Tensor, "N T D"]) -> tuple[int, int]:
    """How many images, and rows of each: all, but for one large image at a time."""
    n, tokens = max(1, len(q)), q.shape[1]
    scores = ATTENTION_SCORES * n
    images = max(1, min(n, scores // tokens**2))
    return images, max(1, scores // (images * tokens))


def in_rows(
    q: Float[Tensor, "N T D"],
    k: Float[Tensor, "N T D"],
    v: Float[Tensor, "N T D"],
    scale: float,
    rows: int,
) -> Float[Tensor, "N T D"]:
    return torch.cat([probabilities(part, k, scale) @ v for part in q.split(rows, dim=1)], dim=1)


def gradient_in_rows(
    q: Float[Tensor, "N T D"],
    k: Float[Tensor, "N T D"],
    v: Float[Tensor, "N T D"],
    grad: Float[Tensor, "N T D"],
    scale: float,
    rows: int,
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Gradients of q, k and v; each row of q has its share in all of k's and v's."""
    parts = zip(*(x.split(rows, dim=1) for x in (q, grad)), strict=True)
    of_q, of_k, of_v = zip(
        *(attention_gradient(part, k, v, slopes, scale) for part, slopes in parts), strict=True
    )
    if len(of_q) == 1:
        return of_q[0], of_k[0], of_v[0]
    return torch.cat(of_q, dim=1), torch.stack(of_k).sum(0), torch.stack(of_v).sum(0)


def probabilities(
    q: Float[Tensor, "N R D"], k: Float[Tensor, "N T D"], scale: float
) -> Float[Tensor, "N R T"]:
    # the scale belongs to the product, which is rounded after it: float16 doesn't overflow
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    return scores.softmax(dim=-1)


def attention_gradient(
    q: Float[Tensor, "N R D"],
    k: Float[Tensor, "N T D"],
    v: Float[Tensor, "N T D"],
    grad: Float[Tensor, "N R D"],
    scale: float,
) -> tuple[Float[Tensor, "N R D"], Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
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
        attn: Block,
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


def pads_behind(block: Block) -> bool:
    """Whether diffusers' Downsample2D does what `halve` does, of images upside down."""
    conv = block.conv
    plain = block.use_conv and isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros"
    pads = plain and (conv.kernel_size, conv.stride, block.padding) == ((3, 3), (2, 2), 0)
    return pads and getattr(block, "norm", None) is None


def looks_around(conv: nn.Conv2d) -> bool:
    """Whether a convolution looks as far in all directions."""
    sides = tuple((k - 1) // 2 for k in conv.kernel_size)
    return conv.stride == conv.dilation == (1, 1) and conv.padding == sides


def halve_quickly(encoder: Block) -> None:
    """Gives an encoder, in place, a forward that sees its images upside down, if all of its
    convolutions can."""
    halving = [layer for layer in encoder.modules() if isinstance(layer, Downsample2D)]
    inside = {layer.conv for layer in halving}
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    others = [conv for conv in convolutions if conv not in inside]
    if not halving or not all(map(pads_behind, halving)) or not all(map(looks_around, others)):
        return
    turn_over(convolutions)
    for layer in halving:
        layer.forward = partial(downsample, layer)  # pyright: ignore[reportAttributeAccessIssue]
    encoder.forward = partial(upside_down, encoder.forward)


def downsample(
    block: Block, hidden_states: Float[Tensor, "N C H W"], *_scale: float
) -> Float[Tensor, "N D h w"]:
    """Half as many pixels on a side."""
    return halve(block.conv, hidden_states)


def upside_down(
    forward: Callable[[Tensor], Tensor], images: Float[Tensor, "N C H W"]
) -> Float[Tensor, "N D h w"]:
    return forward(images.flip(2, 3)).flip(2, 3)


def slim(vae: Block, decodes: bool = False) -> Block:
    """Gives a frozen AutoencoderKL's encoder (or a -TemporalDecoder's) this file's forwards, in
    place; drops its decoder, unless it is to decode."""
    decoder = {name: part for name in DECODER if (part := getattr(vae, name, None)) is not None}
    for name in decoder:
        setattr(vae, name, None)
    encoder = vae.encoder
    weight = encoder.conv_norm_out.weight
    if channels_cuda.fits(weight, len(weight), encoder.conv_norm_out.num_groups):
        encoder.to(memory_format=torch.channels_last)
    halve_quickly(encoder)
    for layer in vae.modules():  # a module calls whatever it has as its forward
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            give_turned(layer)
        if isinstance(layer, ResnetBlock2D) and is_plain(layer):
            layer.forward = partial(resnet, layer)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(encoder.conv_act, nn.SiLU):
        encoder.conv_norm_out.forward = partial(norm, encoder.conv_norm_out, silu=True)
        encoder.conv_act = nn.Identity()
    for attn in encoder.mid_block.attentions:
        if attn is not None and attn.heads == 1 and attn.group_norm is not None:
            attn.set_processor(MatrixAttentionProcessor())
    channels_cuda.compile_ahead(encoder)
    for name, part in decoder.items() if decodes else ():
        setattr(vae, name, part)
    return vae
