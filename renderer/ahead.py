"""Work at the start of a step whose size the host has to know: which samples there are. Behind all
that the GPU still has to do for the step before, the host would wait for that, and then the GPU for
what the host does next.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def ahead_of_queue(device: torch.device, after: Iterable[torch.cuda.Event]) -> Iterator[None]:
    """What is launched inside begins once these events have happened; what is launched on the
    current stream later on waits for it. What it allocates is to be `handed_over`."""
    stream, current = stream_of(device), torch.cuda.current_stream(device)
    for event in after:
        stream.wait_event(event)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def handed_over(tensors: Iterable[Tensor | None]) -> None:
    """Keeps their memory until the current stream has done with them."""
    for tensor in tensors:
        if tensor is not None:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


@functools.cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)
