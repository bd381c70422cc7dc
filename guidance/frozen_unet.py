"""A UNet whose weights are frozen, faster on a GPU.

An image's channels stay innermost in memory from the first convolution to the last, as
convolutions and attention want them; diffusers' blocks and torch's norms turn it around several
times a block.

The blocks are diffusers', of any version: `channels_innermost` gives them these forwards, which is
all where nobody differentiates its result. `differentiable` is for gradients of what it is given.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import channels_cuda
from .frozen_attention import FrozenAttention, is_joinable, join, read_text_once
from .frozen_layers import (
    Block,
    convolve,
    forked_norm,
    give_turned,
    is_plain,
    layer_norm,
    norm,
    plus,
    resnet,
)
from .frozen_time import read_time_once
from .frozen_upsampling import doubles, prepare_doubling

READERS = ("Attention", "DualTransformer2DModel")  # of a text, among diffusers' layers
TOKENS = 2**15  # of all images
FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


class Output(NamedTuple):
    """What a block returns: diffusers reads it by its name or its place."""

    sample: Tensor


def channels_innermost(network: Block) -> Block:
    """Gives a UNet or a ControlNet the forwards of this file, in place, where its blocks fit."""
    for layer in network.modules():
        if type(layer) in FORMATS:
            layer.to(memory_format=FORMATS[type(layer)])
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            layer.forward = partial(convolve, layer)  # pyright: ignore[reportAttributeAccessIssue]
        forward = forward_of(layer)
        if forward is not None:
            layer.forward = partial(forward, layer)
        if type(layer).__name__ == "Attention" and is_joinable(layer):
            join(layer)
    read_time_once(network)
    if isinstance(getattr(network, "conv_act", None), nn.SiLU):
        network.conv_norm_out.forward = partial(norm, network.conv_norm_out, silu=True)
        network.conv_act = nn.Identity()
    channels_cuda.compile_ahead(network)
    return network


def differentiable(network: Block) -> Block:
    """... and a UNet over images gets what makes gradients of its inputs, its text's among them,
    quick to take: turned weights for those of convolutions, one product for those of the text."""
    channels_innermost(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            give_turned(layer)
    for layer in filter(doubles, network.modules()):
        prepare_doubling(layer)
    blocks = [block for block in network.modules() if is_plain_transformer(block)]
    inside = [attn for block in blocks for attn in (block.attn1, block.attn2)]
    others = {layer for layer in network.modules() if type(layer).__name__ in READERS}
    if {*inside} == others and all(isinstance(a.processor, FrozenAttention) for a in inside):
        read_text_once(network, [block.attn2 for block in blocks])
    return network


def forward_of(layer: Block) -> Callable | None:
    """This file's forward for one of diffusers' blocks; None for other layers and variants."""
    kind = type(layer).__name__
    if kind == "ResnetBlock2D":
        return resnet if is_plain(layer) else None
    if kind == "Transformer2DModel":
        return transformer_2d if layer.is_input_continuous else None
    return {
        "TransformerTemporalModel": transformer_temporal,
        "TemporalConvLayer": temporal_convolutions,
        "BasicTransformerBlock": transformer_block if is_plain_transformer(layer) else None,
        "UpBlock2D": up_block if is_plain_way_up(layer) else None,
        "CrossAttnUpBlock2D": up_block if is_plain_way_up(layer) else None,
        "GEGLU": geglu,
    }.get(kind)


# ------------------------------------------------------------------ blocks


def is_plain_way_up(block: Block) -> bool:
    """Whether `up_block` does what diffusers' UpBlock2D or CrossAttnUpBlock2D would."""
    resnets = getattr(block, "resnets", [])
    return len(resnets) > 0 and all(forward_of(layer) is resnet for layer in resnets)


def up_block(
    block: Block,
    hidden_states: Float[Tensor, "N _ h w"],
    res_hidden_states_tuple: tuple[Tensor, ...],
    temb: Tensor | None = None,
    upsample_size: int | None = None,
    **context: Any,
) -> Float[Tensor, "N D H W"]:
    """Residual blocks, each with another skip connection, whose gradient so is one of its own."""
    if block.gradient_checkpointing or getattr(block, "s1", None):  # FreeU
        given = hidden_states, res_hidden_states_tuple, temb
        return type(block).forward(block, *given, upsample_size=upsample_size, **context)
    skips = reversed(res_hidden_states_tuple)
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    for layer, attention, skip in zip(block.resnets, attentions, skips, strict=True):
        hidden_states = layer(hidden_states, temb, skip=skip)
        if attention is not None:
            hidden_states = attention(hidden_states, **context, return_dict=False)[0]
    for layer in block.upsamplers or []:
        hidden_states = layer(hidden_states, upsample_size)
    return hidden_states


def transformer_2d(
    block: Block,
    hidden_states: Float[Tensor, "N C H W"],
    encoder_hidden_states: Any = None,
    *_others: Any,  # that a gradient in parts hands over by their places: all None
    return_dict: bool = True,
    **context: Any,
) -> Output:
    """Attention among an image's pixels, and to the text."""
    normed, x = forked_norm(block.norm, hidden_states, silu=False)
    tokens = project(block.proj_in, rows(normed))
    for layer in block.transformer_blocks:
        tokens = layer(tokens, encoder_hidden_states=encoder_hidden_states, **context)
    tokens = project(block.proj_out, tokens) + rows(x)
    return Output(images(tokens, *x.shape[2:]))


def transformer_temporal(
    block: Block,
    x: Float[Tensor, "BF C H W"],
    num_frames: int = 1,
    return_dict: bool = True,
    **context: Any,
) -> Output:
    """Attention among a pixel's frames."""
    normed = norm(block.norm, clips(x, num_frames))  # [B C F H*W]
    tokens = normed.permute(0, 3, 2, 1)
    pixels = tokens.shape[:2]
    tokens = project(block.proj_in, tokens.flatten(0, 1))
    for layer in block.transformer_blocks:
        tokens = layer(tokens, **context)
    tokens = project(block.proj_out, tokens).unflatten(0, pixels).transpose(1, 2)
    tokens = rows(x).unflatten(0, (-1, num_frames)) + tokens  # [B F H*W C]
    return Output(images(tokens.flatten(0, 1), *x.shape[2:]))


def temporal_convolutions(
    block: Block, x: Float[Tensor, "BF C H W"], num_frames: int = 1
) -> Float[Tensor, "BF C H W"]:
    """Four convolutions along time, as images of F x (H*W) pixels."""
    clip = h = clips(x, num_frames)
    bias = None
    for layers in (block.conv1, block.conv2, block.conv3, block.conv4):
        h = norm(layers[0], h, silu=True, offset=bias)
        convolution, bias = layers[-1], layers[-1].bias[None]
        h = F.conv2d(h, convolution.weight.squeeze(-1), padding=convolution.padding[:2])
    out = plus(clip, h, bias)
    return images(rows(out).reshape(len(x), -1, x.shape[1]), *x.shape[2:])


def is_plain_transformer(block: Block) -> bool:
    """Whether `transformer_block` does what diffusers' BasicTransformerBlock would."""
    norms = [getattr(block, name, None) for name in ("norm1", "norm2", "norm3")]
    odd = ("pos_embed", "scale_shift_table", "fuser", "_chunk_size")
    return (
        type(block).__name__ == "BasicTransformerBlock"
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and block.attn2 is not None
        and not block.only_cross_attention
        and all(getattr(block, name, None) is None for name in odd)
    )


def transformer_block(
    block: Block,
    hidden_states: Float[Tensor, "N T C"],
    attention_mask: None = None,
    encoder_hidden_states: Float[Tensor, "N L E"] | tuple[Tensor, ...] | None = None,
    encoder_attention_mask: None = None,
    **_others: Any,
) -> Float[Tensor, "N T C"]:
    """Attention, attention to others, and two layers, each of the norm of what came before, each
    added to it."""
    x, normed = layer_norm(block.norm1, hidden_states)
    x, normed = layer_norm(block.norm2, x, block.attn1(normed))
    attended = block.attn2(normed, encoder_hidden_states=encoder_hidden_states)
    x, normed = layer_norm(block.norm3, x, attended)
    return x + in_parts(block.ff, normed)


def in_parts(layers: nn.Module, tokens: Float[Tensor, "N T C"]) -> Float[Tensor, "N T D"]:
    """Two layers with many channels between, which are there for as many tokens at once as fill a
    GPU; a gradient would want all of them."""
    if tokens.requires_grad or tokens.shape[:2].numel() <= TOKENS:
        return layers(tokens)
    return torch.cat([layers(part) for part in tokens.split(max(1, TOKENS // tokens.shape[1]))])


# ------------------------------------------------------------------ layers


def project(layer: nn.Linear | nn.Conv2d, tokens: Float[Tensor, "N T C"]) -> Float[Tensor, "N T D"]:
    """A linear layer, which older checkpoints have as a convolution of one pixel."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)


def geglu(layer: Block, tokens: Float[Tensor, "N T C"], *_scale: float) -> Float[Tensor, "N T D"]:
    """One half of the projected channels, gated by the other."""
    projected = layer.proj(tokens)
    if channels_cuda.fits(projected, projected.shape[-1] // 2):
        return channels_cuda.CudaGeglu.apply(projected)
    values, gates = projected.chunk(2, dim=-1)
    return values * F.gelu(gates)


# ------------------------------------------------------------------ shapes, without copies


def rows(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N H*W C"]:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def images(x: Float[Tensor, "N P C"], height: int, width: int) -> Float[Tensor, "N C H W"]:
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def clips(x: Float[Tensor, "BF C H W"], num_frames: int) -> Float[Tensor, "B C F P"]:
    return rows(x).unflatten(0, (-1, num_frames)).permute(0, 3, 1, 2)
