"""Guidances that work beside each other on a GPU, which none of them fills: each on a stream of its
own, in a step and in its gradients.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch


class Lanes:
    """names: of those that have streams; the others work on the current one. What is allocated in a
    lane is used on the current stream after `join`, and in its lane again only in a later step,
    which begins behind that."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self.names = names
        self.streams: dict[str, torch.cuda.Stream] = {}

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """What is launched inside comes behind what the current stream was given up to now."""
        if name not in self.names:
            yield
            return
        if name not in self.streams:
            self.streams[name] = torch.cuda.Stream()
        stream = self.streams[name]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Lets the current stream wait for all of them."""
        for stream in self.streams.values():
            torch.cuda.current_stream().wait_stream(stream)
