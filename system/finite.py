"""Tensors that stop being numbers: found by one reduction each, before they are saved or used."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the floating-point tensors that hold a NaN or an infinity."""
    extremes = {
        name: torch.aminmax(tensor.detach())  # a NaN is the least and the largest
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel()
    }
    return [name for name, ends in extremes.items() if not all(map(math.isfinite, ends))]


def optimizer_tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a Lightning checkpoint's optimizers remember of each parameter, by a name to show."""
    return dict(_entries(checkpoint.get("optimizer_states", ())))


def _entries(optimizers: Any) -> Iterator[tuple[str, Tensor]]:
    for i, optimizer in enumerate(optimizers):
        for parameter, state in optimizer["state"].items():
            for key, value in state.items():
                yield f"optimizer {i}'s {key} of parameter {parameter}", value


def some(names: list[str], most: int = 3) -> str:
    """The first few of the names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_loaded(tensors: Mapping[str, Any], source: str) -> None:
    """A ValueError if what was read from `source` isn't finite."""
    if bad := not_finite(tensors):
        raise ValueError(
            f"{source} holds NaN or infinite numbers ({some(bad)}): the run that wrote it had "
            "failed by then. Take an older checkpoint of its folder, or run its stage again with "
            "a lower learning rate or trainer.precision=32."
        )
