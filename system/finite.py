"""What a checkpoint holds, looked at for NaN and infinity."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..files.torch_files import not_finite


def optimizer_tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a Lightning checkpoint's optimizers remember of each parameter, by a name to show."""
    return dict(_entries(checkpoint.get("optimizer_states", ())))


def _entries(optimizers: Any) -> Iterator[tuple[str, Tensor]]:
    for i, optimizer in enumerate(optimizers):
        for parameter, state in optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"optimizer {i}'s {key} of parameter {parameter}", value


def some(names: list[str], most: int = 3) -> str:
    """The first few of the names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_loaded(tensors: Mapping[str, Tensor], source: str) -> None:
    """A ValueError if what was read from `source` isn't finite."""
    if bad := not_finite(tensors):
        raise ValueError(
            f"{source} holds NaN or infinite numbers ({some(bad)}): the run that wrote it had "
            "failed by then. Take an older checkpoint of its folder, or run its stage again with "
            "a lower learning rate or trainer.precision=32."
        )
