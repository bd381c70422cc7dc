"""The page of a report: one file with its pictures and videos inside, which asks nothing of a
network. How it looks stands in report.html, a template of Jinja2.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .progress import duration
from .result_files import ANIMATION, REFERENCE, SHEET, TURNTABLE

Curve = list[tuple[int, float | None]]  # (training step, value; None: no number)
CAPTIONS = {
    ANIMATION: "The camera turns while time runs",
    REFERENCE: "Time runs, seen from the reference camera",
    TURNTABLE: "The camera turns, time stands still",
    SHEET: "Views (rows) and times (columns)",
}
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
WIDTH, HEIGHT = 240, 120  # of a chart, in its own units
TOP, BASE, SIDE = 22, HEIGHT - 18, 4  # of them, where the curve is


@dataclass(frozen=True)
class Figure:
    """A picture or video, with its bytes inside."""

    data: str  # a data: URL
    caption: str
    video: bool


def figure(path: Path, caption: str) -> Figure:
    kind = MEDIA_TYPES[path.suffix.lower()]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Figure(data, caption, video=kind.startswith("video/"))


@dataclass(frozen=True)
class Chart:
    """One loss over the training steps; logarithmic where it spans more than a hundred."""

    title: str
    points: str  # as SVG's polyline has them
    low: float
    high: float
    logarithmic: bool
    first: int  # training step
    last: int
    final: float  # value


def chart(name: str, curve: Curve) -> Chart | None:
    """None where no value is a number."""
    finite = [(step, v) for step, v in curve if v is not None and math.isfinite(v)]
    if not finite:
        return None
    values = [value for _, value in finite]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 100
    scale = math.log10 if logarithmic else float
    first, last = finite[0][0], finite[-1][0]
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0
    points = " ".join(
        f"{SIDE + (WIDTH - 2 * SIDE) * (step - first) / max(last - first, 1):.1f},"
        f"{BASE - (BASE - TOP) * (scale(value) - bottom) / span:.1f}"
        for step, value in finite
    )
    title = name.removeprefix("loss_")
    return Chart(title, points, low, high, logarithmic, first, last, values[-1])


def charts(task: Mapping[str, Any]) -> list[Chart]:
    made = (chart(name, loss["curve"]) for name, loss in task["losses"].items())
    return [one for one in made if one is not None]


def page(facts: Mapping[str, Any], folder: Path, inputs: Iterable[Path]) -> str:
    """The whole page of what report.json says; `folder` has the result's files."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    media = [figure(path, "The subject, cut out") for path in inputs if path.is_file()]
    media += [figure(folder / name, CAPTIONS[name]) for name in facts["files"] if name != SHEET]
    tasks = facts["steps"]  # as report.json has called tasks since the first version
    return environment.get_template("report.html").render(
        facts=facts,
        media=media,
        sheet=figure(folder / SHEET, CAPTIONS[SHEET]) if SHEET in facts["files"] else None,
        charts=[(task["name"], charts(task)) for task in tasks if "losses" in task],
        unread=[line for task in tasks for line in task.get("unread", [])[:3]],
        width=WIDTH,
        height=HEIGHT,
        base=BASE,
        side=SIDE,
    )
