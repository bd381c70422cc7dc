"""The small networks that turn a point's encoding into density, colour or a normal."""

import itertools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import mlp_cuda

# On CPUs, slices whose hidden layer stays in the cache take a third of the time of the whole
# (229k rows of 16 -> 64 -> 1, forward + backward, one core: 38 ms, against 104 ms unsliced).
CPU_ROWS = 8192


class Activation(nn.Module):
    """A function as a layer, so that the linear layers around it keep their numbers."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.function(x)


class MLP(nn.Module):
    """Linear layers without bias and with torch's own initialisation, an activation between.

    fast: on CUDA devices, go through `mlp_cuda` where its kernels fit.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        n_neurons: int,
        n_hidden_layers: int,
        activation: Callable[[Tensor], Tensor],
        output_activation: Callable[[Tensor], Tensor],
        fast: bool = True,
    ):
        super().__init__()
        widths = [dim_in, *[n_neurons] * n_hidden_layers, dim_out]
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), Activation(activation)]
        self.layers = nn.Sequential(*layers[:-1])
        self.output_activation = output_activation
        self.fast = fast and n_hidden_layers == 1 and activation is F.relu

    def forward(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        first, last = cast(nn.Linear, self.layers[0]), cast(nn.Linear, self.layers[-1])
        if self.fast and x.is_cuda and mlp_cuda.fits(x, first.weight, last.weight):
            x = mlp_cuda.two_layers_cuda(x, first.weight, last.weight)
        elif x.device.type == "cpu" and len(x) > CPU_ROWS:
            x = torch.cat([self.layers(rows) for rows in x.split(CPU_ROWS)])
        else:
            x = self.layers(x)
        return self.output_activation(x)
