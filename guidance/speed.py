"""Frozen networks, faster: `system.speed.compile`.

graph     the network gets frozen_unet.py's forwards, computes once what both halves of guidance
          have in common (shared_halves.py), and its kernels are recorded once as a CUDA graph and
          replayed, so that launching them costs the CPU nothing. A second a model.
inductor  torch.compile writes fused kernels, which are recorded in turn. Minutes a model at first
          use. UNets over images get channels_last weights, which convolutions on GPUs prefer
          (torch doesn't give them to a network with 3D convolutions).

With either, numbers differ by float16's rounding. Both are for networks that nobody differentiates,
whose shapes stay the same from step to step; a new shape is recorded anew. VAE encoders, which are
differentiated, are recorded with their backward pass where their images are few: those launch more
than the GPU has to do. So is all that a prior says of few single pictures, gradient included.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import threestudio
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .frozen_unet import channels_innermost
from .shared_halves import share_halves

COMPILE = (False, "graph", "inductor")  # what `system.speed.compile` can be
WARM_UP = 3  # calls before a recording, in which libraries choose their kernels
FEW_PIXELS = 2**19  # of all images of a call: two of 512 x 512

Inputs = dict[str, Tensor]
T = TypeVar("T")
Results = TypeVar("Results", Tensor, tuple[Tensor, ...])


def check_compile(how: bool | str) -> bool | str:
    if how not in COMPILE:
        raise ValueError(
            f"system.speed.compile is {how!r}; it can be false, graph (CUDA graphs of the frozen "
            "networks: a second each) or inductor (torch.compile, then graphs: minutes)."
        )
    return how


def prepare_network(network: Any, how: bool | str, only_text_differs: bool = False) -> None:
    """Memory format and compilation, in place; the recording is `Recorded`'s.

    only_text_differs: between the halves of all batches that the network will see.
    """
    if how == "graph":
        channels_innermost(network)
        if only_text_differs:
            share_halves(network)
        return
    channels_last(network)
    network.forward = torch.compile(network.forward, dynamic=False)


def channels_last(network: Any) -> None:
    """Weights of that format, in place, for a network that has no 3D convolutions."""
    if not any(isinstance(layer, nn.Conv3d) for layer in network.modules()):
        network.to(memory_format=torch.channels_last)


class Recorded(Generic[Results]):
    """A function of a dict of tensors, which returns a tensor or several, recorded as a CUDA graph
    for each set of their shapes. It draws no random numbers.

    pool: memory (torch.cuda.graph_pool_handle) that recordings may share, as long as all of them
        live, since a result is copied out before another is replayed.
    """

    def __init__(self, function: Callable[[Inputs], Results], name: str, pool: Any):
        self.function, self.name, self.pool = function, name, pool
        self.recordings: dict[tuple, tuple[Inputs, torch.cuda.CUDAGraph, Results]] = {}

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Results:
        if WITHIN.recording:
            return self.function(inputs)
        key = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if key not in self.recordings:
            self.recordings[key] = self.record(inputs)
        placed, graph, result = self.recordings[key]
        for name, value in inputs.items():
            placed[name].copy_(value)
        graph.replay()
        if isinstance(result, Tensor):
            return result.clone()
        return cast(Results, tuple(x.clone() for x in result))

    def record(self, inputs: Inputs) -> tuple[Inputs, torch.cuda.CUDAGraph, Results]:
        start = time.perf_counter()
        placed = {name: value.clone() for name, value in inputs.items()}
        warm_up(lambda: self.function(placed))
        graph, result = capture(lambda: self.function(placed), self.pool)
        say_recorded(self.name, start)
        return placed, graph, result


def are_few(images: Float[Tensor, "N C *size"]) -> bool:
    """Whether these are single pictures with a gradient, few enough for it to be recorded."""
    differentiated = torch.is_grad_enabled() and images.requires_grad
    return differentiated and images.ndim == 4 and images[:, 0].numel() <= FEW_PIXELS


class RecordedEncoder:
    """A function of few images and its gradient for them, recorded for each of their shapes; calls
    with many images, or without a gradient, go to the function itself.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], name: str):
        self.function, self.name = function, name
        self.recordings: dict[tuple, Differentiable] = {}

    def __call__(self, images: Float[Tensor, "N C H W"]) -> Tensor:
        if WITHIN.recording or not are_few(images):
            return self.function(images)
        key = images.shape, images.dtype
        if key not in self.recordings:
            start = time.perf_counter()
            self.recordings[key] = Differentiable(self.function, images)
            say_recorded(self.name, start)
        return Replay.apply(images, self.recordings[key])


class Differentiable:
    """A function of a tensor and its gradient, as two CUDA graphs. What the second needs of the
    first stays in memory of their own, where a second forward would overwrite it: a call whose
    intermediates are gone is replayed before its gradient.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor):
        self.x = x.detach().clone().requires_grad_()

        def gradient(result: Tensor, grad: Tensor) -> Tensor:
            return torch.autograd.grad(result, self.x, grad)[0]

        def both() -> None:
            result = function(self.x)
            gradient(result, torch.zeros_like(result))

        warm_up(both)
        pool = torch.cuda.graph_pool_handle()
        self.first, result = capture(lambda: function(self.x), pool)
        self.grad = torch.zeros_like(result)
        self.second, self.x_grad = capture(lambda: gradient(result, self.grad), pool)
        self.result = result.detach()
        self.calls = 0
        self.held: int | None = None  # the call whose intermediates are there

    def forward(self, x: Tensor, call: int) -> Tensor:
        self.x.detach().copy_(x)
        self.first.replay()
        self.held = call
        return self.result.clone()

    def backward(self, x: Tensor, grad: Tensor, call: int) -> Tensor:
        if self.held != call:
            self.forward(x, call)
        self.grad.copy_(grad)
        self.second.replay()
        self.held = None  # they made room for the gradients
        return self.x_grad.clone()


class Replay(torch.autograd.Function):
    """A call of a `Differentiable`."""

    @staticmethod
    def forward(ctx, x, recording):
        recording.calls += 1
        ctx.recording, ctx.call = recording, recording.calls
        ctx.save_for_backward(x)
        return recording.forward(x, ctx.call)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (x,) = ctx.saved_tensors
        return ctx.recording.backward(x, grad, ctx.call), None


class Within(threading.local):
    recording = False  # whether what this thread calls becomes a part of a recording


WITHIN = Within()


@contextmanager
def recording() -> Iterator[None]:
    """Nothing inside is recorded for itself."""
    before, WITHIN.recording = WITHIN.recording, True
    try:
        yield
    finally:
        WITHIN.recording = before


def warm_up(call: Callable[[], object]) -> None:
    """Calls on a stream beside the current one, as CUDA graphs want it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), recording():
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def capture(call: Callable[[], T], pool: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of the call, and where it puts its result. In a lane it is recorded on the
    lane's stream: those recorded on torch's own one share cuBLAS's workspace, which graphs that run
    beside each other would write over (torch 2.11)."""
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.current_stream()
    stream = None if here == torch.cuda.default_stream() else here
    # other threads may use the GPU while this one records
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"), recording():
        result = call()
    return graph, result


def say_recorded(name: str, start: float) -> None:
    threestudio.info(f"{name} was recorded in {time.perf_counter() - start:.1f} s.")
