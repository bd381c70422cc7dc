"""Ctrl-C and SIGTERM end a run after the current step; a second one ends it at once."""

import signal
from types import FrameType

from .processes import Processes

AGREE_EVERY = 25  # steps after which several processes agree on whether to stop


class SoftStop:
    """A context in which the two signals are noted."""

    def __init__(self, on: Processes):
        self.on = on
        self.signal: int | None = None  # that came to this process

    def __enter__(self) -> "SoftStop":
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[signal.Signals(number)])

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> int | None:
        """The signal to stop for after this step."""
        if self.on.count == 1:
            return self.signal
        if step % AGREE_EVERY or not self.on.any(self.signal is not None):
            return None
        return self.signal or signal.SIGINT
