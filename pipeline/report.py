"""The report of a run: `report.json` for programs, `report.html` for people, in `result/`.

Losses come from the CSV logs of the stages (and of the token's training).
"""

import csv
import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.json_files import read_json
from ..files.whole import whole_file
from .manifest import Manifest
from .page import CAPTIONS, page
from .plan import Plan
from .result_files import EXPORTED, PLAYBACK, REPORT
from .task import Task

Curve = list[tuple[int, float]]  # (training step, value)
POINTS = 200  # of a curve, at most
LIBRARIES = [
    "threestudio-animate124",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "pytorch-lightning",
    "safetensors",
    "numpy",
]


# ---------------------------------------------------------------------------------- losses


def curves(folder: Path) -> tuple[dict[str, Curve], list[str]]:
    """The losses in a task's CSV logs, by name, and what of the logs can't be read.

    A resumed run's log goes on with the one before.
    """
    found: dict[str, dict[int, float]] = {}
    odd: list[str] = []
    logs = sorted(folder.glob("csv_logs/version_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    for log in [*logs, *folder.glob("loss.csv")]:
        try:
            with log.open(newline="", encoding="utf-8", errors="replace") as file:
                for name, step, value in read_log(csv.DictReader(file), log, odd):
                    found.setdefault(name, {})[step] = value
        except (OSError, csv.Error) as error:
            odd.append(f"{log}: {error}")
    return {name: sorted(values.items()) for name, values in found.items()}, odd


def read_log(rows: csv.DictReader, log: Path, odd: list[str]) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of each loss; rows with a cell that is no number are named in `odd`."""
    for row in rows:
        losses = {
            column.removeprefix("train/"): text
            for column, text in row.items()
            if column and column.removeprefix("train/").startswith("loss") and text
        }
        try:
            cells = [(name, int(row["step"]), float(text)) for name, text in losses.items()]
        except (KeyError, TypeError, ValueError):  # no such column, too few cells, a word
            odd.append(f"{log}, line {rows.line_num}")
            continue
        yield from cells


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """At most so many points: means of equal stretches, each at the last step of its stretch."""
    stretch = math.ceil(len(curve) / points)
    parts = [curve[n : n + stretch] for n in range(0, len(curve), max(stretch, 1))]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def number(value: float) -> float | None:
    """JSON has no nan and no infinity: None."""
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------------------------- report.json


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def task_report(task: Task, manifest: Manifest) -> dict[str, Any]:
    record = manifest.records.get(task.name)
    if record is None:
        return {"name": task.name, "state": "not run"}
    facts: dict[str, Any] = {
        "name": task.name,
        "state": "done" if record["finished"] else "begun",
        "seconds": round(record["seconds"], 1),
        "steps": task.steps,
        "peak_memory_gb": {kind: round(gb, 2) for kind, gb in record["peak_memory"].items()},
        "command": record.get("command", task.shown()),
    }
    losses, odd = curves(task.folder)
    if losses:
        facts["losses"] = {
            name: {
                "final": number(curve[-1][1]),
                "curve": [(at, number(value)) for at, value in thinned(curve)],
            }
            for name, curve in losses.items()
        }
    if odd:
        facts["unread"] = odd[:10]
    config = task.folder / "configs" / "parsed.yaml"
    if config in task.outputs:  # a stage
        facts["checkpoint"] = place(task.checkpoint, manifest.folder)
        facts["config"] = place(config, manifest.folder)
    return facts


def further(result: Path) -> list[dict[str, Any]]:
    """What else lies in a result, for other programs: files and folders, with their bytes."""
    known = {*CAPTIONS, *REPORT, PLAYBACK, EXPORTED}
    paths = sorted(p for p in result.iterdir() if p.name not in known and p.name[0] != ".")
    return [
        {
            "name": path.name + "/" * path.is_dir(),
            "bytes": sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()),
        }
        for path in paths
    ]


def skeleton(exported: Path) -> dict[str, Any] | None:
    """How far the skeleton's mesh is from what it was fitted to, in shares of the scene's size."""
    return read_json(exported).get("skeleton") if exported.is_file() else None


def place(path: Path | None, folder: Path) -> str | None:
    """Of a file that is there, within the folder."""
    if path is None or not path.is_file():
        return None
    return path.relative_to(folder).as_posix()


def summary(plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """The content of report.json."""
    request = plan.request
    tasks = [task_report(task, manifest) for task in plan.tasks]
    result = manifest.folder / "result"
    return {
        "name": request.name,
        "prompt": request.prompt,
        "prompts": plan.prompts,
        "image": str(request.image),
        "preset": request.preset,
        "field": request.field,
        "fast": request.fast,
        "vram_gb": request.vram,
        "memory_options": plan.memory,
        "overrides": request.overrides,
        "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(sum(task.get("seconds", 0.0) for task in tasks), 1),
        "steps": tasks,
        "playback": read_json(result / PLAYBACK) if (result / PLAYBACK).is_file() else None,
        "skeleton": skeleton(result / EXPORTED),
        "files": [name for name in CAPTIONS if (result / name).is_file()],
        "further_files": further(result),
        "versions": versions(),
    }


def write(plan: Plan, manifest: Manifest) -> Path:
    """Writes both files; returns the page's path."""
    folder = manifest.folder / "result"
    folder.mkdir(parents=True, exist_ok=True)
    facts = summary(plan, manifest)
    inputs = [manifest.folder / "input" / "_rgba.png"]
    texts = [
        json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        page(facts, folder, inputs),
    ]
    for name, text in zip(REPORT, texts, strict=True):
        with whole_file(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder / REPORT[1]
