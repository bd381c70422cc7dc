"""Whether a geometry has anything to do with time: asked here, and nowhere else."""

import inspect
from collections.abc import Callable
from typing import Any


def takes_times(function: Callable) -> bool:
    """Whether a geometry's method has an argument `times`; those of stock geometries have none."""
    return "times" in inspect.signature(function).parameters


def is_static(geometry: Any) -> bool:
    """Whether it stands still: one that takes no times does, and one that says so (`static`)."""
    return not takes_times(geometry.forward) or bool(getattr(geometry, "static", False))
