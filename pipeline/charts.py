"""Loss curves as pictures with axes: where their points, ticks and labels go in an SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from .loss_words import WORDS

Curve = Sequence[tuple[int, float | None]]  # (training step, value; None: no number)
BOX = {"width": 320, "height": 176}  # of a chart, in its own units
BOX |= {"left": 52, "right": 306, "top": 8, "base": 138}  # where its curve is
DECADES = 2  # a scale that spans more is logarithmic
TREND = 10  # the thick line is the mean over this part of the curve


@dataclass(frozen=True)
class Tick:
    at: float  # x or y
    label: str


@dataclass(frozen=True)
class Chart:
    """One loss over the training steps."""

    title: str
    words: str  # what it is and what to see in it; none for a loss that isn't ours
    points: str  # as SVG's polyline has them
    trend: str  # likewise
    steps: list[Tick]
    values: list[Tick]
    final: float


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on the way from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        scale = math.log10 if self.logarithmic else float
        low, high = scale(self.low), scale(self.high)
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * share

    def ticks(self, most: int) -> list[Tick]:
        """Round numbers; the one number there is, if it is one."""
        if self.low == self.high:
            return [Tick(self.at(self.low), f"{self.low:.3g}")]
        locator = (
            LogLocator(numticks=most)
            if self.logarithmic
            else MaxNLocator(most, steps=[1, 2, 5, 10])
        )
        inside = [v for v in locator.tick_values(self.low, self.high) if self.low <= v <= self.high]
        return [Tick(self.at(value), f"{value:g}") for value in inside]


def means(values: Sequence[float], width: int) -> list[float]:
    """Of the values at most half of `width` away from each."""
    half = width // 2
    near = (values[max(0, n - half) : n + half + 1] for n in range(len(values)))
    return [sum(some) / len(some) for some in near]


def chart(name: str, curve: Curve) -> Chart | None:
    """None where no value is a number."""
    finite = [(step, v) for step, v in curve if v is not None and math.isfinite(v)]
    if not finite:
        return None
    steps, values = zip(*finite, strict=True)
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 10**DECADES
    bottom = low if logarithmic else min(low, 0.0)  # what lies flat should look so
    across = Axis(steps[0], steps[-1], BOX["left"], BOX["right"])
    up = Axis(bottom, high, BOX["base"], BOX["top"], logarithmic)

    def line(heights: Sequence[float]) -> str:
        pairs = zip(steps, heights, strict=True)
        return " ".join(f"{across.at(step):.1f},{up.at(value):.1f}" for step, value in pairs)

    title = name.removeprefix("loss_")
    return Chart(
        title=title,
        words=WORDS.get(title, ""),
        points=line(values),
        trend=line(means(values, len(values) // TREND)),
        steps=across.ticks(5),
        values=up.ticks(4),
        final=values[-1],
    )


def charts(losses: Mapping[str, Any]) -> list[Chart]:
    """Those of a task, as report.json has its losses."""
    made = (chart(name, loss["curve"]) for name, loss in losses.items())
    return [one for one in made if one is not None]
