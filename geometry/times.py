"""Whether a geometry has anything to do with time: asked here, and nowhere else; and random times
to look at one that does."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def takes_times(function: Callable) -> bool:
    """Whether a geometry's method has an argument `times`; those of stock geometries have none."""
    return "times" in inspect.signature(function).parameters


def is_static(geometry: Any) -> bool:
    """Whether it stands still: one that takes no times does, and one that says so (`static`)."""
    return not takes_times(geometry.forward) or bool(getattr(geometry, "static", False))


def random_moments(n: int, device: torch.device) -> Float[Tensor, "N 1"]:
    """n times in [0, 1], one from each n-th of it, in order."""
    start = torch.arange(n, device=device)[:, None]
    return (start + torch.rand(n, 1, device=device)) / n
