"""Videos and a contact sheet of the last stage that a plan has."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from argument_types import finite_number, path, whole_number

from ..draft import Draft
from ..overrides import flags
from ..places import shown
from ..request import TURN, camera_path, frame_rate
from ..result_files import ASSETS, REPORT, file_names
from ..task import Task

NAME = "result"
SCRIPT = "pipeline/result.py"
PLAYED = ("seconds", "fps", "loop")  # options of animate.py: how a motion plays
SCENE = {"config": "--from", "checkpoint": "--from", "out": "--out"}  # flags of `add_scene`
MOST_FRAMES = 10_000
PLANNED = {**SCENE, **{name: f"--{name}" for name in ("seconds", "loop", "camera")}}


def parser() -> argparse.ArgumentParser:
    """The script's."""
    p = argparse.ArgumentParser(
        description="The result of a scene: videos and a contact sheet, from a stage's checkpoint."
    )
    add_scene(p)
    p.add_argument(
        "--size",
        type=whole_number(8, 4096),
        help="pixels of a side (default: the config's eval_height)",
    )
    add_playback(p)
    p.add_argument(
        "--camera",
        type=camera_path,
        default=TURN,
        metavar="PATH",
        help="in animation.mp4: turn, rest, or azimuth,elevation,distance of places that it passes",
    )
    p.add_argument(
        "--views", type=whole_number(1, 64), default=4, help="rows of the contact sheet (4)"
    )
    p.add_argument(
        "--times", type=whole_number(1, 64), default=5, help="columns of the contact sheet (5)"
    )
    return p


def add_scene(p: argparse.ArgumentParser) -> None:
    """The flags of a scene that is trained, and of where to write what is made of it."""
    p.add_argument("--config", type=path, required=True, help="a trial's configs/parsed.yaml")
    p.add_argument("--checkpoint", type=path, required=True, help="its ckpts/last.ckpt")
    p.add_argument("--out", type=path, required=True, help="folder to write to")


def add_playback(p: argparse.ArgumentParser) -> None:
    """The flags of how a motion plays."""
    p.add_argument(
        "--frames",
        type=whole_number(1, MOST_FRAMES),
        help="frames from tau 0 to 1 (default: as many as the seconds have)",
    )
    p.add_argument(
        "--seconds", type=finite_number(0.1, 600), default=2.0, help="from tau 0 to 1 (2)"
    )
    p.add_argument("--fps", type=frame_rate, default=24, help="frames a second (24)")
    p.add_argument("--loop", action="store_true", help="the motion's end meets its start")


def number_of_frames(args: argparse.Namespace) -> int:
    """From tau 0 to 1.

    Raises:
        ValueError: there are more than anyone waits for.
    """
    frames = args.frames or max(1, round(args.seconds * args.fps))
    if frames > MOST_FRAMES:
        raise ValueError(
            f"--seconds {args.seconds:g} with --fps {args.fps} is {frames} frames to render; "
            f"{MOST_FRAMES} at most would do. Lower one of the two."
        )
    return frames


def stands_still(config: Mapping[str, Any]) -> bool:
    """Whether a stage with this config trains a static geometry."""
    return bool(config["system"]["geometry"].get("pos_encoding_config", {}).get("static", False))


def of_last_stage(
    draft: Draft,
    name: str,
    script: str,
    options: Mapping[str, Any],
    parser: argparse.ArgumentParser,
    outputs: Iterable[str],
    **more: Any,
) -> Task:
    """A task that makes files in result/ of the last stage's scene. more: of the Task."""
    stage, folder = draft.last, draft.folder(NAME)
    reads = {"config": draft.config(stage), "checkpoint": draft.checkpoint(stage)}
    paths = {key: shown(file) for key, file in {**reads, "out": folder}.items()}
    words = flags(name, {**paths, **options}, parser)
    number_of_frames(parser.parse_args(words))  # too many are said now
    return Task(
        name=name,
        command=[script, *words],
        folder=folder,
        settings={**options, "stage": stage},
        reads=reads,
        outputs=[folder / file for file in outputs],
        cost=draft.preset.costs[name],
        **more,
    )


def make(draft: Draft) -> Task:
    options = draft.flags(NAME, *PLAYED, "camera")
    outputs = file_names(stands_still(draft.configs[draft.last]))
    return of_last_stage(
        draft, NAME, SCRIPT, options, parser(), outputs, slight=REPORT, others=ASSETS
    )
