"""Attention of networks whose weights are frozen.

One product makes q, k and v of self-attention; diffusers' three read its input three times, make
three gradients for it that have to be added up, and its processor divides by 1 besides. Another
one makes k and v of a text for all layers that read it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .frozen_layers import Block

FEW_TOKENS = 32
ABSENT = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")


class FrozenAttention:
    """Attention among tokens, or to others (`encoder_hidden_states`; or their keys and values, of
    all layers), as diffusers' `Attention` calls it."""

    def __call__(
        self,
        attn: Block,
        hidden_states: Float[Tensor, "N T C"],
        encoder_hidden_states: Float[Tensor, "N L E"] | tuple[Tensor, ...] | None = None,
        attention_mask: None = None,
        temb: Any = None,
    ) -> Float[Tensor, "N T C"]:
        x, others = hidden_states, encoder_hidden_states
        if others is None:
            q, k, v = F.linear(x, attn.joined_weight, attn.joined_bias).chunk(3, dim=-1)
        elif isinstance(others, tuple):
            q, k, v = attn.to_q(x), *others[attn.part : attn.part + 2]
        else:
            q, k, v = attn.to_q(x), attn.to_k(others), attn.to_v(others)
        q, k, v = (z.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for z in (q, k, v))
        with kernels(q):
            out = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def kernels(q: Float[Tensor, "N H T D"]) -> AbstractContextManager:
    """Those for so many queries: a pixel's 16 frames took torch's usual ones one and a half times
    as long as these (H200, PyTorch 2.11, head size 64); many pixels that look at a few words take
    these twice as long."""
    if not q.is_cuda or q.shape[2] > FEW_TOKENS or not hasattr(nn, "attention"):  # PyTorch < 2.3
        return nullcontext()
    backends = nn.attention.SDPBackend
    return nn.attention.sdpa_kernel([backends.EFFICIENT_ATTENTION, backends.MATH])


def is_joinable(attn: Block) -> bool:
    """Whether `FrozenAttention` does what diffusers' own processor would."""
    return (
        type(attn.processor).__name__ == "AttnProcessor2_0"
        and all(getattr(attn, name, None) is None for name in ABSENT)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.to_k is not None
    )


def join(attn: Block) -> None:
    """Gives a layer of diffusers this file's processor, and where it may be asked for
    self-attention its three weights as one."""
    layers = attn.to_q, attn.to_k, attn.to_v
    weight = bias = None
    if attn.to_q.in_features == attn.to_k.in_features:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        if attn.to_q.bias is not None:
            bias = torch.cat([layer.bias.detach() for layer in layers])
        for layer, part in zip(layers, weight.chunk(3), strict=True):
            layer.weight.data = part  # not twice in memory
    attn.register_buffer("joined_weight", weight, persistent=False)
    attn.register_buffer("joined_bias", bias, persistent=False)
    attn.set_processor(FrozenAttention())


def read_text_once(network: Block, readers: list[Block]) -> None:
    """Gives a UNet a forward, in place, in which one product makes keys and values for all layers
    that attend to its text (`readers`: they have this file's processor)."""
    layers = [layer for attn in readers for layer in (attn.to_k, attn.to_v)]
    if not layers or any(layer.bias is not None for layer in layers):
        return
    for i, attn in enumerate(readers):
        attn.part = 2 * i
    weight = torch.cat([layer.weight.detach() for layer in layers])
    network.register_buffer("text_weight", weight, persistent=False)
    network.text_widths = [layer.out_features for layer in layers]
    network.forward = partial(with_keys_and_values, network, network.forward)


def with_keys_and_values(
    network: Block,
    forward: Callable[..., Any],
    sample: Tensor,
    timestep: Any,
    encoder_hidden_states: Float[Tensor, "N L E"],
    **options: Any,
) -> Any:
    parts = F.linear(encoder_hidden_states, network.text_weight).split(network.text_widths, dim=-1)
    return forward(sample, timestep, parts, **options)
