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
from markupsafe import Markup

from .charts import BOX, charts
from .progress import duration
from .request import REST, TURN
from .result_files import ANIMATION, MESH, REFERENCE, SHEET, TURNTABLE

HERE = Path(__file__).parent
CAPTIONS = {
    ANIMATION: "The camera turns while time runs",
    REFERENCE: "Time runs, seen from the reference camera",
    TURNTABLE: "The camera turns, time stands still",
    SHEET: "Views (rows) and times (columns)",
    MESH: "The moving mesh",
}
FOR_WHOM = {  # files for other programs: name -> who reads them
    "animation.usdc": "USD: Houdini, Omniverse, Blender",
    "animation.usdz": "USD in one file: iPhones too",
    "animation.abc": "Alembic: Unreal, Maya",
    "tracks.npz": "numpy: points, colours and faces over time",
    "skinned.glb": "moved by a skeleton: small, and bones can be edited",
}
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}
EMBEDDED = 64 << 20  # bytes; a larger mesh lies beside the page


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
class MeshFile:
    """The animation as a file, for the player of the page."""

    name: str
    size: str
    base64: str  # its bytes; "" for one that is too large for a page


def mesh(path: Path) -> MeshFile | None:
    """None where there is none: older runs made no mesh."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    content = path.read_bytes() if size <= EMBEDDED else b""
    return MeshFile(path.name, file_size(size), base64.b64encode(content).decode())


def file_size(count: int) -> str:
    """`12 kB`, `3.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{math.ceil(count / 1e3)} kB"


def asset(name: str) -> Markup:
    """A style or a script of this folder, as it goes into a page."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def template(name: str) -> jinja2.Template:
    """Whatever is put into it is text, unless it comes from `asset`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "file_size": file_size}
    environment.globals["asset"] = asset
    return environment.get_template(name)


def captions(playback: Mapping[str, Any] | None) -> dict[str, str]:
    """Of what a result shows; playback: playback.json, None for a scene that stands still."""
    camera = playback["camera"] if playback else TURN
    if camera == TURN:
        return CAPTIONS
    way = "rests" if camera == REST else f"passes {camera}"
    return {**CAPTIONS, ANIMATION: f"The camera {way} while time runs"}


def page(facts: Mapping[str, Any], folder: Path, inputs: Iterable[Path]) -> str:
    """The whole page of what report.json says; `folder` has the result's files."""
    media = [figure(path, "The subject, cut out") for path in inputs if path.is_file()]
    shown_apart = (SHEET, MESH)
    says = captions(facts["playback"])
    media += [figure(folder / n, says[n]) for n in facts["files"] if n not in shown_apart]
    tasks = facts["steps"]  # as report.json has called tasks since the first version
    return template("report.html").render(
        facts=facts,
        mesh=mesh(folder / MESH),
        media=media,
        sheet=figure(folder / SHEET, CAPTIONS[SHEET]) if SHEET in facts["files"] else None,
        charts=[(task["name"], charts(task["losses"])) for task in tasks if "losses" in task],
        unread=[line for task in tasks for line in task.get("unread", [])[:3]],
        for_whom=FOR_WHOM,
        box=BOX,
    )
