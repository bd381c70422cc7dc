"""What one person looks at, and when a new picture of it is due. Nothing here knows a browser.

While anything moves, pictures are as large as lets them come often enough; once it rests they grow
to their full size, each twice the one before, so that a move never waits for long.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from .looking import MODES, Eye

OFTEN = 10.0  # pictures a second that are aimed at while something moves
REST = 0.15  # seconds without a change after which pictures grow
SMALLEST = 32  # pixels of a picture's height
NEWS = 0.3  # how far a measured speed replaces the one before


class Pace:
    """How tall a picture may be to be drawn in a given time; a memory of how long others took."""

    def __init__(self) -> None:
        self.speed: dict[str, float] = {}  # pixels a second, by mode

    def took(self, mode: str, pixels: int, seconds: float) -> None:
        now = pixels / max(seconds, 1e-6)
        before = self.speed.get(mode, now)
        self.speed[mode] = before + NEWS * (now - before)

    def height(self, mode: str, aspect: float) -> int:
        """Of a picture of width / height = aspect; a multiple of 4, so that small news don't make
        its size flicker."""
        pixels = self.speed.get(mode, SMALLEST**2) / OFTEN
        return max(SMALLEST, 4 * int(math.sqrt(pixels / aspect) / 4))


class Wish(NamedTuple):
    """A picture that is due."""

    stage: str
    mode: str
    tau: float
    eye: Eye
    height: int
    width: int


@dataclass
class Session:
    eye: Eye
    aspect: float = 1.0
    largest: int = 512  # pixels of a picture's height at rest
    stage: str = ""
    mode: str = MODES[0]
    seconds: float = 2.0  # from tau = 0 to 1 when it plays
    tau: float = 0.0
    began: float | None = None  # when it would have been at tau = 0; None: it doesn't play
    version: int = 0  # of the scene: how often it was loaded
    shown: tuple = ()  # what the last picture shows ...
    height: int = 0  # ... and its height
    changed: float = field(default=-math.inf)  # when something of that changed last

    def play(self, now: float) -> None:
        """From where it stands."""
        self.began = now - self.tau * self.seconds

    def pause(self) -> None:
        self.began = None

    def advance(self, now: float) -> None:
        """Time runs, if it plays."""
        began = self.began  # another thread may pause it meanwhile
        if began is not None:
            self.tau = (now - began) / self.seconds % 1.0

    def due(self, now: float, pace: Pace) -> Wish | None:
        """The picture to be drawn now, if any."""
        self.advance(now)
        state = (self.stage, self.version, self.mode, self.tau, self.eye, self.aspect)
        moving = min(pace.height(self.mode, self.aspect), self.largest)
        if state != self.shown:
            self.changed = now if self.shown else -math.inf
            self.shown, self.height = state, moving
        elif self.height < self.largest and now - self.changed >= REST:
            self.height = min(max(2 * self.height, moving), self.largest)
        else:
            return None
        return self.wish(self.height)

    def whole(self) -> Wish:
        """What is shown, at its full size."""
        return self.wish(self.largest)

    def wish(self, height: int) -> Wish:
        width = max(1, round(height * self.aspect))
        return Wish(self.stage, self.mode, self.tau, self.eye, height, width)
