"""Progress over the whole plan, and the time that is left.

What a task costs is guessed beforehand (presets.py). While it runs, its own speed replaces the
guess, and the tasks still to come are scaled by how far the guesses were off so far.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

from ..events import TRAINING, Progress
from .presets import Cost

SETTLED = 0.02  # share of a task's training from which its own speed is trusted


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


@dataclass
class Work:
    """A task of the plan as work: its guessed cost and, of one that trains, its training steps."""

    name: str
    cost: Cost
    steps: int | None = None

    @property
    def guess(self) -> float:
        """Seconds."""
        return self.cost.start_s + self.cost.step_s * (self.steps or 0)


class Estimate:
    """Which share of the plan is done, and how many seconds are left.

    `clock` gives seconds; it is asked when something is reported.
    """

    def __init__(self, works: Sequence[Work], clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.waiting = list(works)
        self.running: Work | None = None
        self.began = clock()
        self.guessed = self.spent = 0.0  # of finished tasks, seconds
        self._first: tuple[int, float] | None = None  # done and time of the first report
        self._rate: float | None = None  # seconds a training step
        self._done = self._total = 0
        self._after = ""  # what is done after the training
        self._started = self._reported = self.began

    def start(self, name: str) -> None:
        """A task begins; those before it in the plan that never began were not needed."""
        while self.waiting and self.waiting[0].name != name:
            self.waiting.pop(0)
        self.running = self.waiting.pop(0)
        self._started = self._reported = self.clock()
        self._first, self._rate, self._done, self._total = None, None, 0, self.running.steps or 0
        self._after = ""

    def report(self, event: Progress) -> None:
        """How far the running task is. Of one that trains, only that makes the time that is left;
        what comes after it is said."""
        if self.running is None:
            return
        if self.running.steps is not None and event.of != TRAINING:
            self._after = f", {event.of} {event.done}/{event.total}"
            return
        done, total, now = event.done, event.total, self.clock()
        if self._first is None:
            self._first = done, now
        elif done <= self._done:
            return  # the same again, drawn later
        elif done - self._first[0] >= SETTLED * total:
            self._rate = (now - self._first[1]) / (done - self._first[0])
        self._done, self._total, self._reported = done, total, now

    def finish(self) -> None:
        assert self.running is not None  # start() began it
        self.spent += self.clock() - self._started
        self.guessed += self.running.guess
        self.running = None

    @property
    def scale(self) -> float:
        """How much longer things take here than guessed."""
        spent, guessed = self.spent, self.guessed
        work, first, rate = self.running, self._first, self._rate
        if work is not None and first is not None and rate is not None and work.cost.step_s:
            part = self._done - first[0]
            spent, guessed = spent + rate * part, guessed + work.cost.step_s * part
        return spent / guessed if guessed > 0 else 1.0

    def left(self) -> float:
        """Seconds."""
        left = self.scale * sum(work.guess for work in self.waiting)
        if self.running is None:
            return left
        elapsed = self.clock() - self._started
        if self._rate is not None:
            since = self.clock() - self._reported
            left += max(0.0, self._rate * (self._total - self._done) - since)
        else:
            left += max(0.0, self.scale * self.running.guess - elapsed)
        return left

    def share(self) -> float:
        """Of the plan's whole time, what has passed: 0 to 1."""
        passed = self.clock() - self.began
        return passed / max(passed + self.left(), 1e-9)

    def step_text(self) -> str:
        if self.running is None:
            return ""
        steps = f" {self._done}/{self._total}" if self._total else ""
        return f"{self.running.name}{steps}{self._after}"


class ProgressLine:
    """One line that shows an `Estimate`: redrawn on a terminal, printed now and then elsewhere."""

    def __init__(self, estimate: Estimate, file: TextIO | None = None, every: float = 10.0):
        self.estimate = estimate
        self.file = file or sys.stdout
        self.every = every  # seconds between plain lines
        self._best = 0.0
        self._last: float | None = None
        self._bar = None
        if self.file.isatty():
            form = "{percentage:3.0f}% |{bar}| {desc}"
            self._bar = tqdm(total=1.0, bar_format=form, file=self.file, dynamic_ncols=True)

    def text(self) -> str:
        left = duration(self.estimate.left())
        return f"{self.estimate.step_text()}, about {left} left"

    def refresh(self, now: bool = False) -> None:
        """Shows where things are; `now`: even if the last plain line is fresh."""
        self._best = max(self._best, min(self.estimate.share(), 0.99))  # never backwards
        if self._bar is not None:
            self._bar.n = self._best
            self._bar.set_description_str(self.text(), refresh=True)
            return
        time_now = self.estimate.clock()
        if now or self._last is None or time_now - self._last >= self.every:
            self._last = time_now
            print(f"[{100 * self._best:3.0f} %] {self.text()}", file=self.file, flush=True)

    def say(self, line: str) -> None:
        """A line of text above."""
        if self._bar is not None:
            self._bar.write(line, file=self.file)
        else:
            print(line, file=self.file, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
