"""A CLIP text encoder whose weights are frozen: no gradients but those of its embeddings.

Its kernels are small and many. One product makes q, k and v here, and each norm adds what came
before it (guidance/frozen_layers.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..guidance.channels_cuda import compile_ahead
from ..guidance.frozen_layers import layer_norm

Module = Any  # of transformers, of any version, whose parts are known by their names


class FrozenText:
    """model: a CLIPTextModel. Its last hidden states are what a call returns."""

    def __init__(self, model: Module):
        text = parts_of(model)
        self.embeddings, self.last_norm = text.embeddings, text.final_layer_norm
        self.layers = [Layer(layer) for layer in text.encoder.layers]
        compile_ahead(model)

    def __call__(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        x, added = self.embeddings(ids), None
        for layer in self.layers:
            x, added = layer(x, added)
        return layer_norm(self.last_norm, x, added)[1]


class Layer:
    """A layer of the encoder, of x and what is still to be added to it; returns the same."""

    def __init__(self, layer: Module):
        attention = layer.self_attn
        self.norms = layer.layer_norm1, layer.layer_norm2
        self.out, self.mlp, self.heads = attention.out_proj, layer.mlp, attention.num_heads
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self.weight = torch.cat([one.weight.detach() for one in projections])
        self.bias = torch.cat([one.bias.detach() for one in projections])
        for one, part in zip(projections, self.weight.chunk(3), strict=True):
            one.weight.data = part  # not twice in memory

    def __call__(
        self, x: Float[Tensor, "B L D"], added: Float[Tensor, "B L D"] | None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        first, second = self.norms
        x, normed = layer_norm(first, x, added)
        joined = F.linear(normed, self.weight, self.bias).chunk(3, dim=-1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in joined)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x, normed = layer_norm(second, x, self.out(seen.transpose(1, 2).flatten(2)))
        return x, self.mlp(normed)


def is_plain(model: Module) -> bool:
    """Whether `FrozenText` does what the model would."""
    text = parts_of(model)
    norms = [text.final_layer_norm]
    for layer in text.encoder.layers:
        norms += [layer.layer_norm1, layer.layer_norm2]
        attention = layer.self_attn
        if {type(part) for part in attention.children()} != {nn.Linear}:  # an adapter's, for one
            return False
    return all(type(norm) is nn.LayerNorm for norm in norms)


def parts_of(model: Module) -> Module:
    """What has embeddings, encoder and last norm: in transformers 4 a module inside."""
    return getattr(model, "text_model", model)
