"""Frozen networks, faster: `system.speed.compile`.

graph     the network gets frozen_unet.py's forwards, and its kernels are recorded once as a CUDA
          graph and replayed, so that launching them costs the CPU nothing. A second a model.
inductor  torch.compile writes fused kernels, which are recorded in turn. Minutes a model at first
          use. UNets over images get channels_last weights, which convolutions on GPUs prefer
          (torch doesn't give them to a network with 3D convolutions).

With either, numbers differ by float16's rounding. Both are for networks that nobody differentiates,
whose shapes stay the same from step to step; a new shape is recorded anew.
"""

import time
from collections.abc import Callable

import threestudio
import torch
from torch import Tensor, nn

from .frozen_unet import channels_innermost

COMPILE = (False, "graph", "inductor")  # what `system.speed.compile` can be
WARM_UP = 3  # calls before a recording, in which libraries choose their kernels

Inputs = dict[str, Tensor]


def check_compile(how: bool | str) -> bool | str:
    if how not in COMPILE:
        raise ValueError(
            f"system.speed.compile is {how!r}; it can be false, graph (CUDA graphs of the frozen "
            "networks: a second each) or inductor (torch.compile, then graphs: minutes)."
        )
    return how


def prepare_network(network: nn.Module, how: str) -> None:
    """Memory format and compilation, in place; the recording is `Recorded`'s."""
    if how == "graph":
        channels_innermost(network)
        return
    if not any(isinstance(layer, nn.Conv3d) for layer in network.modules()):
        network.to(memory_format=torch.channels_last)
    network.forward = torch.compile(network.forward, dynamic=False)


class Recorded:
    """A function of a dict of tensors, recorded as a CUDA graph for each set of their shapes.

    pool: memory (torch.cuda.graph_pool_handle) that recordings may share, as long as all of them
        live, since a result is copied out before another is replayed.
    """

    def __init__(self, function: Callable[[Inputs], Tensor], name: str, pool: tuple):
        self.function, self.name, self.pool = function, name, pool
        self.recordings: dict[tuple, tuple[Inputs, torch.cuda.CUDAGraph, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        key = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if key not in self.recordings:
            self.recordings[key] = self.record(inputs)
        placed, graph, result = self.recordings[key]
        for name, value in inputs.items():
            placed[name].copy_(value)
        graph.replay()
        return result.clone()

    def record(self, inputs: Inputs) -> tuple[Inputs, torch.cuda.CUDAGraph, Tensor]:
        start = time.perf_counter()
        placed = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.function(placed)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may use the GPU while this one records
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            result = self.function(placed)
        seconds = time.perf_counter() - start
        threestudio.info(f"{self.name} was recorded in {seconds:.1f} s.")
        return placed, graph, result
