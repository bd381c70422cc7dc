"""What both halves of classifier-free guidance have in common, computed once.

They differ in their text alone, and a UNet reads that in its first cross-attention. Up to there,
its first convolution, its first residual block, what a clip's frames say to each other there, the
first self-attention and a ControlNet's look at its picture, each row of one half is a row of the
other. That is little of the layers, but these have the most pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .frozen_layers import Block


def share_halves(network: Block) -> Block:
    """Gives a UNet or a ControlNet forwards, in place, that take rows [2B ...] whose halves are the
    same but for the text, and compute the start of one half for both."""
    for layer in before_the_text(network):
        layer.forward = partial(once_for_both, layer.forward)
    return network


def before_the_text(network: Block) -> list[Block]:
    """The costly layers that the text comes after."""
    first = network.down_blocks[0]
    layers = [
        getattr(network, name, None)
        for name in ("conv_in", "transformer_in", "controlnet_cond_embedding")
    ]
    layers += [next(iter(getattr(first, name, [])), None) for name in ("resnets", "temp_convs")]
    for attention in getattr(first, "attentions", [])[:1]:
        block = attention.transformer_blocks[0]
        layers.append(None if block.only_cross_attention else block.attn1)
    return [layer for layer in layers if layer is not None]


def once_for_both(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """The forward of the first half of all tensors' rows, and its result twice."""
    args = tuple(first_half(value) for value in args)
    result = forward(*args, **{name: first_half(value) for name, value in kwargs.items()})
    if isinstance(result, Tensor):
        return torch.cat([result, result])
    return tuple(torch.cat([x, x]) for x in result)


def first_half(value: Any) -> Any:
    return value[: len(value) // 2] if isinstance(value, Tensor) else value
