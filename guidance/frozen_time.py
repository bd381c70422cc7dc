"""What the residual blocks of a UNet add for the time, of networks whose weights are frozen.

Each block projects the same embedding to its own channels. One product does it for all of them,
with the biases of the convolutions that it is added to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .frozen_layers import Block, is_plain

# of diffusers, whose blocks get what `time_embedding` makes, unless something is added to it
NETWORKS = ("UNet2DConditionModel", "UNet3DConditionModel", "UNetMotionModel", "ControlNetModel")
ADDED = ("class_embedding", "add_embedding", "time_embed_act")


def read_time_once(network: Block) -> None:
    """Lets a network's `time_embedding` make all its blocks' channels, in place, where nobody else
    reads it. A block then has `time_part`, its place among them, and no projection of its own."""
    blocks = [layer for layer in network.modules() if "Resnet" in type(layer).__name__]
    if not blocks or type(network).__name__ not in NETWORKS or not all(map(takes_time, blocks)):
        return
    if any(getattr(network, name, None) is not None for name in ADDED):
        return
    embedding = network.time_embedding
    layers = [block.time_emb_proj for block in blocks]
    embedding.register_buffer(
        "joined_weight", torch.cat([layer.weight.detach() for layer in layers]), persistent=False
    )
    embedding.register_buffer("joined_bias", torch.cat([*map(bias_of, blocks)]), persistent=False)
    embedding.forward = partial(channels_of_all, embedding, embedding.forward)
    start = 0
    for block in blocks:
        stop = start + block.time_emb_proj.out_features
        block.time_part, block.time_emb_proj = slice(start, stop), None
        start = stop


def takes_time(block: Block) -> bool:
    return (
        type(block).__name__ == "ResnetBlock2D"
        and is_plain(block)
        and isinstance(block.time_emb_proj, nn.Linear)
    )


def bias_of(block: Block) -> Float[Tensor, " C"]:
    """Of a block's projection and of its first convolution."""
    weight = block.conv1.weight
    total = weight.new_zeros(len(weight), dtype=torch.promote_types(weight.dtype, torch.float32))
    for layer in (block.time_emb_proj, block.conv1):
        if layer.bias is not None:
            total += layer.bias.detach()
    return total.to(weight)


def channels_of_all(
    embedding: Block, forward: Callable[..., Tensor], *given: Any
) -> Float[Tensor, "N C"]:
    return F.linear(F.silu(forward(*given)), embedding.joined_weight, embedding.joined_bias)
