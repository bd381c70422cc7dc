"""Stops a run whose numbers stop being numbers, without making the CPU wait for the GPU."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = 0.999  # share of a gradient
FEW = 0.01  # share that may be left out in every step
PATIENCE = 3  # steps in a row that may lose more: half precision may overflow once


@dataclass
class Numbers:
    """A step's numbers, on their way to the CPU."""

    step: int
    losses: tuple[str, ...]  # names of the first values; "loss" is the weighted sum of the others
    priors: tuple[str, ...]  # of the values after them: the share of their gradient that was lost
    weights: Mapping[str, float]  # by key of system.loss
    values: Tensor
    arrived: torch.cuda.Event | None  # None: they are there

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Losses and lost shares by name, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values = iter(self.values.tolist())
        return {k: next(values) for k in self.losses}, {k: next(values) for k in self.priors}


class LossWatch:
    """Each step's losses and gradients are looked at when the next step's come; on a CPU at once.

    way_back: says where a run with better settings can go on.
    """

    def __init__(self, way_back: Callable[[], str]) -> None:
        self.way_back = way_back
        self.pending: Numbers | None = None
        self.lost: dict[str, Tensor] = {}  # of this step so far
        self.patience: dict[str, int] = {}
        self.streaks: Counter[str] = Counter()  # steps in a row, by prior

    def gradient(self, prior: str, lost: Tensor, patience: int) -> None:
        """A prior's gradient in this step.

        lost: the share of it that isn't finite, a scalar.
        patience: steps in a row that may lose all of it before the run ends.
        """
        self.lost[prior] = lost.detach()
        self.patience[prior] = patience

    def look(self, step: int, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """The step's end. losses: scalars by name, "loss" their sum."""
        lost, self.lost = self.lost, {}
        values = torch.stack([v.detach().float() for v in (*losses.values(), *lost.values())])
        arrived = None
        on_cpu = values.to("cpu", non_blocking=True)
        if values.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self.finish()
        self.pending = Numbers(step, tuple(losses), tuple(lost), weights, on_cpu, arrived)
        if arrived is None:
            self.finish()

    def finish(self) -> None:
        """Looks at what is still on its way.

        Raises:
            FloatingPointError: a number is none, or a prior's gradient was lost for too long.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        losses, lost = pending.read()
        if not math.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"The loss of step {pending.step} is not finite: "
                f"{culprits(losses, pending.weights)}. A lower learning rate or weight would do, "
                f"or trainer.precision=32. {self.way_back()}"
            )
        for prior, share in lost.items():
            self.streaks[prior] = self.streaks[prior] + 1 if share > FEW else 0
            if self.streaks[prior] >= (self.patience[prior] if share > WHOLE else PATIENCE):
                raise FloatingPointError(
                    f"The gradient of {prior} is not finite ({share:.1%} of it, "
                    f"{self.streaks[prior]} steps in a row up to step {pending.step}). Its "
                    "guidance_scale, its prompt's embeddings or its model's files may be damaged; "
                    "where they aren't, half_precision_weights=false would do. "
                    f"{self.way_back()}"
                )


def culprits(losses: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """The losses that aren't finite, or aren't once they are weighted; else all of them."""
    said, bad = [], []
    for name, value in losses.items():
        key = name.replace("loss_", "lambda_")
        if key in weights:
            said.append(f"{name} {value:.4g} times system.loss.{key} {weights[key]:.4g}")
            if not (torch.tensor(value) * weights[key]).isfinite():
                bad.append(said[-1])
    return ", ".join(bad or said) or f"{losses['loss']:g}"
