"""Whether a geometry has anything to do with time: asked here, and nowhere else; and random times
to look at one that does."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def takes_times(method: Callable) -> bool:
    """Whether a geometry's method has an argument `times`; those of stock geometries have none."""
    return names_times(getattr(method, "__func__", method))


@functools.cache
def names_times(function: Callable) -> bool:
    return "times" in inspect.signature(function).parameters


def is_static(geometry: Any) -> bool:
    """Whether it stands still: one that takes no times does, and one that says so (`static`)."""
    return not takes_times(geometry.forward) or bool(getattr(geometry, "static", False))


class Runs(NamedTuple):
    """Times of points that lie in runs of equal ones, in place of a time for each: nobody has to
    look for them, which the host would wait for."""

    moments: Float[Tensor, "T 1"]
    counts: list[int]  # of points

    def of_each(self) -> Float[Tensor, "N 1"]:
        counts = torch.tensor(self.counts, device=self.moments.device)
        return self.moments.repeat_interleave(counts, dim=0, output_size=sum(self.counts))


Times = Float[Tensor, "*#N 1"] | Runs


def repeated(times: Float[Tensor, "#N 1"] | Runs, n: int) -> Float[Tensor, "#M 1"] | Runs:
    """Times of n points for each; one of all stays that."""
    if isinstance(times, Runs):
        return Runs(times.moments, [n * count for count in times.counts])
    return times if len(times) == 1 else times.repeat_interleave(n, dim=0)


def random_moments(n: int, device: torch.device) -> Float[Tensor, "N 1"]:
    """n times in [0, 1], one from each n-th of it, in order."""
    start = torch.arange(n, device=device)[:, None]
    return (start + torch.rand(n, 1, device=device)) / n
