"""Whether a run still learns: its losses and rows are numbers, and its steps are taken.

A look waits for the GPU, so there is one before anything is written and every few seconds.
"""

import math

from jaxtyping import Float
from torch import Tensor

LARGEST = 65504.0  # of a learnt number: float16, which the models may run in, ends there
MOST_UNDONE = 30  # steps in a row; the scaler halves its scale in each, from 2^16 at first


class Watch:
    """
    scaled: a GradScaler undoes each step whose gradient overflows in float16, and so answers it;
        elsewhere one loss that is no number ends the run.
    """

    def __init__(self, step: int, scaled: bool):
        self.seen = step  # losses before this one were looked at
        self.scaled = scaled
        self.taken, self.taken_at = 0.0, step  # optimizer steps, and when the last one was counted
        self.loss: float | None = None  # the last that was a number

    def look(
        self,
        step: int,
        losses: Float[Tensor, " steps"],
        rows: Float[Tensor, "n D"],
        taken: float,
    ) -> None:
        """
        losses: of all steps, of which `step` are done; taken: those that the optimizer counts.

        Raises:
            FloatingPointError: a loss is no number, the rows are none or absurd, or each of many
                steps was undone, or of all at the end.
        """
        for i, loss in enumerate(losses[self.seen : step].tolist(), start=self.seen + 1):
            if math.isfinite(loss):
                self.loss = loss
            elif not self.scaled:
                raise FloatingPointError(self.came_apart(f"The loss is {loss} at step {i}"))
        self.seen = step
        largest = rows.detach().abs().max().item()
        if not largest <= LARGEST:  # also a nan
            what = f"The learnt numbers reach {largest:.1e} at step {step}"
            raise FloatingPointError(self.came_apart(what))
        if taken != self.taken:
            self.taken, self.taken_at = taken, step
        never = step == len(losses) and not taken  # at the end
        if self.scaled and (never or step - self.taken_at >= MOST_UNDONE):
            raise FloatingPointError(
                f"Each of the steps {self.taken_at + 1} to {step} overflowed in float16 and was "
                "undone, so nothing is learnt. Try --mixed_precision bf16, or no."
            )

    def came_apart(self, what: str) -> str:
        before = "" if self.loss is None else f" (the last good loss is {self.loss:.4f})"
        return (
            f"{what}{before}. Try a smaller --learning_rate; if it is so from the first step on, "
            "--mixed_precision no, or another copy of the model."
        )
