"""Stops a run whose loss is infinite or NaN, without making the CPU wait for the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Look:
    """The losses of a step, on their way to the CPU."""

    step: int
    values: dict[str, Tensor]
    arrived: torch.cuda.Event | None  # None: they are there

    def check(self) -> None:
        if self.arrived is not None:
            self.arrived.synchronize()
        if not torch.isfinite(self.values["loss"]):
            found = {key: float(value) for key, value in self.values.items()}
            raise FloatingPointError(
                f"The loss of step {self.step} is not finite: {found}. A lower "
                "learning rate or weight would do, or trainer.precision=32; "
                "resume=<checkpoint> goes on from the last one saved."
            )


class LossWatch:
    """Each step's losses are looked at when the next step's come; on a CPU at once."""

    def __init__(self) -> None:
        self.pending: Look | None = None

    def look(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """losses: scalars by name, "loss" their sum."""
        values = {key: value.detach().to("cpu", non_blocking=True) for key, value in losses.items()}
        arrived = None
        if losses["loss"].is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self.finish()
        self.pending = Look(step, values, arrived)
        if arrived is None:
            self.finish()

    def finish(self) -> None:
        """Looks at what is still on its way."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.check()
