"""The page of a batch: all its scenes, a row each. It lies beside their logs and shows what lies in
their folders, loaded as one scrolls there; moved together with them it stays whole.
"""

import datetime
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files.whole import whole_file
from .page import MEDIA_TYPES, file_size, template
from .progress import duration
from .request import Request
from .result_files import ANIMATION, MESH, REFERENCE, REPORT, SHEET, TURNTABLE

WAITS, RUNS = "waits", "runs"


@dataclass
class Scene:
    """A scene of a batch; what its row shows is what is there when the page is written."""

    request: Request
    log: Path
    state: str = WAITS

    def row(self, page: Path) -> dict[str, Any]:
        """What the template takes."""
        folder = self.request.folder
        result = folder / "result"
        pictures = [folder / "input" / "_rgba.png", self.request.image]
        places = {
            "picture": [p for p in pictures if p.suffix.lower() in MEDIA_TYPES],
            "video": [result / name for name in (REFERENCE, ANIMATION, TURNTABLE)],
            "sheet": [result / SHEET],
            "report": [result / REPORT[1]],
            "log": [self.log],
        }
        return {
            "name": self.request.name,
            "prompt": self.request.prompt,
            "state": self.state,
            "figures": figures(result),
            **{key: first_there(paths, page) for key, paths in places.items()},
        }


def first_there(paths: Sequence[Path], page: Path) -> str | None:
    """The first of them that is there, as a page links to it."""
    for path in paths:
        if path.is_file():
            return quote(Path(os.path.relpath(path, page.parent)).as_posix())
    return None


def figures(result: Path) -> list[tuple[str, str]]:
    """What a scene took and made, in words; nothing of one that has no report."""
    try:
        facts = json.loads((result / REPORT[0]).read_text(encoding="utf-8"))
        said = taken(facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # none yet, or another program's
    mesh = result / MESH
    return [*said, ("mesh", file_size(mesh.stat().st_size))] if mesh.is_file() else said


def taken(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Time, training steps and memory, of report.json."""
    steps = facts["steps"]
    said = [("time", duration(facts["seconds"]))]
    if trained := sum(step.get("steps") or 0 for step in steps):
        said.append(("training steps", str(trained)))
    for kind, name in (("host", "memory"), ("gpu", "GPU memory")):
        if peak := max((step.get("peak_memory_gb", {}).get(kind, 0) for step in steps), default=0):
            said.append((name, f"{peak:.1f} GB"))
    return [*said, ("preset", facts["preset"]), ("field", facts.get("field", "grid"))]


class Comparison:
    """Keeps the page: it is written when a scene begins or ends."""

    def __init__(self, path: Path, scenes: Mapping[str, Scene]) -> None:
        self.path, self.scenes = path, scenes
        self._writing = threading.Lock()  # scenes run in threads

    def note(self, states: Mapping[str, str]) -> None:
        """Scenes, by name, are in these states now. A page that can't be written is a line: it
        fails no scene."""
        with self._writing:
            for name, state in states.items():
                self.scenes[name].state = state
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(self.path) as part:
                    part.write_text(self.html(), encoding="utf-8")
            except Exception as error:
                print(f"{self.path} could not be written: {error!r}.", file=sys.stderr, flush=True)

    def html(self) -> str:
        rows = [scene.row(self.path) for scene in self.scenes.values()]
        counted = Counter(row["state"].partition(" (")[0] for row in rows)
        return template("comparison.html").render(
            rows=rows,
            counted=counted,
            going=bool(counted.keys() & {WAITS, RUNS}),
            written=datetime.datetime.now().astimezone().isoformat(" ", timespec="minutes")[:16],
        )
