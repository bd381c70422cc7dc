"""The report of a run: `report.json` for programs, `report.html` for people, in `result/`.

The page is one file: pictures and videos are inside it, curves are SVG, nothing is asked of a
network. Losses come from the CSV logs of the stages (and of the token's training).
"""

import base64
import csv
import datetime
import html
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files.whole import whole_file
from .manifest import Manifest
from .plan import Plan, Task
from .presets import STAGES
from .progress import duration
from .result import ANIMATION, REFERENCE, REPORT, SHEET, TURNTABLE

Curve = list[tuple[int, float | None]]  # (training step, value; None: no number)
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
    if task.name in STAGES:
        checkpoint = task.checkpoint if task.checkpoint.is_file() else None
        facts["checkpoint"] = checkpoint and checkpoint.relative_to(manifest.folder).as_posix()
        config = task.folder / "configs" / "parsed.yaml"
        facts["config"] = (
            config.relative_to(manifest.folder).as_posix() if config.is_file() else None
        )
    return facts


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
        "fast": request.fast,
        "vram_gb": request.vram,
        "memory_options": plan.memory,
        "overrides": request.overrides,
        "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(sum(task.get("seconds", 0.0) for task in tasks), 1),
        "steps": tasks,
        "files": [name for name in CAPTIONS if (result / name).is_file()],
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


# ---------------------------------------------------------------------------------- report.html

STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #667078; --line: #d9dde1; --card: #fff;
  --ground: #f4f5f7; --curve: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa3ab; --line: #343a40;
  --card: #1e2226; --ground: #15181b; --curve: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 32px 0 8px; }
h3 { font-size: 1rem; margin: 16px 0 4px; }
p, figcaption, dd, dt { overflow-wrap: anywhere; }
.soft, figcaption, th { color: var(--soft); }
.grid { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(230px, 45%), 1fr)); }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(200px, 45%), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px; }
figure img, figure video { display: block; width: 100%; border-radius: 4px; background: #fff; }
figcaption { font-size: 0.9rem; padding-top: 6px; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.sheet img { width: auto; max-width: 100%; margin: 0 auto; }
pre { margin: 0; padding: 12px; overflow-x: auto; font-size: 0.8rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 14px system-ui, sans-serif; fill: var(--soft); }
details summary { cursor: pointer; }
"""


def page(facts: Mapping[str, Any], folder: Path, inputs: Iterable[Path]) -> str:
    """The whole page; `folder` has the result's files."""
    text = html.escape
    shown = [path for path in inputs if path.is_file()]
    media = [figure(path, "The subject, cut out") for path in shown]
    media += [figure(folder / name, CAPTIONS[name]) for name in facts["files"] if name != SHEET]
    sheet = figure(folder / SHEET, CAPTIONS[SHEET], "sheet") if SHEET in facts["files"] else ""
    rows = "".join(task_row(task) for task in facts["steps"])
    commands = "\n\n".join(task["command"] for task in facts["steps"] if "command" in task)
    losses = "".join(
        f'<h3>{text(task["name"])}</h3><div class="grid curves">'
        + "".join(chart(name, loss["curve"]) for name, loss in task["losses"].items())
        + "</div>"
        for task in facts["steps"]
        if "losses" in task
    )
    unread = ", ".join(line for task in facts["steps"] for line in task.get("unread", [])[:3])
    libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    when = facts["written"][:16].replace("T", " ")
    about = f"preset {facts['preset']}, {duration(facts['seconds'])}, {when}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(facts["prompt"])}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{text(facts["prompt"])}</h1>
<p class="soft">{text(about)}</p>
<div class="grid">{"".join(media)}</div>
{f"<h2>Contact sheet</h2>{sheet}" if sheet else ""}
<h2>Tasks</h2>
<div class="wide"><table>
<thead><tr><th>task</th><th>state</th><th>time</th><th>training steps</th><th>memory</th>
<th>GPU memory</th><th>checkpoint</th></tr></thead>
<tbody>{rows}</tbody>
</table></div>
{f"<h2>Losses</h2>{losses}" if losses else ""}
{f'<p class="soft">Left out, because it is no number: {text(unread)}</p>' if unread else ""}
<h2>How to make it again</h2>
<details><summary>The command of each task</summary>
<div class="wide"><pre>{text(commands)}</pre></div></details>
<p class="soft">{text(libraries)}</p>
</main>
</body>
</html>
"""


def figure(path: Path, caption: str, kind: str = "") -> str:
    """A picture or video, with its bytes inside."""
    media_type = MEDIA_TYPES[path.suffix.lower()]
    data = f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    label = html.escape(caption, quote=True)
    if media_type == "video/mp4":
        body = f'<video src="{data}" title="{label}" controls autoplay muted loop playsinline>'
        body += "</video>"
    else:
        body = f'<img src="{data}" alt="{label}">'
    return f'<figure class="{kind}">{body}<figcaption>{label}</figcaption></figure>'


def task_row(task: Mapping[str, Any]) -> str:
    memory = task.get("peak_memory_gb", {})
    cells = [
        task["name"],
        task["state"],
        duration(task["seconds"]) if "seconds" in task else "",
        task.get("steps") or "",
        f"{memory['host']:.1f} GB" if "host" in memory else "",
        f"{memory['gpu']:.1f} GB" if "gpu" in memory else "",
        task.get("checkpoint") or "",
    ]
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def chart(name: str, curve: Curve, width: int = 240, height: int = 120) -> str:
    """One loss over the training steps, as SVG; logarithmic where it spans more than a hundred."""
    finite = [(step, v) for step, v in curve if v is not None and math.isfinite(v)]
    if not finite:
        return ""
    values = [value for _, value in finite]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 100
    scale = math.log10 if logarithmic else float
    first, last = finite[0][0], finite[-1][0]
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0
    top, base = 22, height - 18
    points = " ".join(
        f"{4 + (width - 8) * (step - first) / max(last - first, 1):.1f},"
        f"{base - (base - top) * (scale(value) - bottom) / span:.1f}"
        for step, value in finite
    )
    title = html.escape(name.removeprefix("loss_"))
    kind = ", log" if logarithmic else ""
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f'<text x="4" y="13">{low:.3g} to {high:.3g}{kind}</text>'
        f'<line x1="4" y1="{base}" x2="{width - 4}" y2="{base}" stroke="var(--line)"/>'
        f'<polyline points="{points}" fill="none" stroke="var(--curve)" stroke-width="1.5" '
        f'stroke-linecap="round"/>'
        f'<text x="4" y="{height - 4}">{first}</text>'
        f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">{last}</text>'
        f"</svg><figcaption>{title}: {values[-1]:.3g}</figcaption></figure>"
    )
