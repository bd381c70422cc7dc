"""A trained scene's files for other programs, by the exporter that launch.py --export has too."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import threestudio
import torch

from ..events import peak_memory, say
from ..exporter.frame_files import ANIMATED
from ..files.whole import check_room, whole_file
from ..system.trained import load_scene
from .places import check_writable
from .tasks.result import number_of_frames


def exporter_config(args: argparse.Namespace) -> dict[str, Any]:
    """The exporter's settings of the script's options: the motion takes as long as the result's
    video from its first frame to its last, or, in a loop, back to the first."""
    steps = max(1, number_of_frames(args) - (not args.loop))  # from tau = 0 to 1
    keys = min(args.keys, steps + 1)
    config = {
        "num_frames": keys,
        "fps": max(1, keys - 1) * args.fps / steps,
        "formats": list(dict.fromkeys([ANIMATED, *args.also])),
        **{key: getattr(args, key) for key in ("faces", "texture", "lit", "resolution", "bones")},
    }
    return config if args.threshold is None else config | {"threshold": args.threshold}


def export(system: Any, config: dict[str, Any], out: Path) -> list[Path]:
    """Writes the files of a scene's system (its geometry, material and background), each under its
    name when it is whole; returns them."""
    exporter = threestudio.find("animate124-4d-exporter")(
        config, geometry=system.geometry, material=system.material, background=system.background
    )
    written = []
    for made in exporter():
        path = out / made.save_name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = Path(made.params["src_path"])
        check_room(path, source.stat().st_size)
        with whole_file(path) as part:
            shutil.copyfile(source, part)
        written.append(path)
    return written


def write_assets(args: argparse.Namespace) -> None:
    """Exports what the script's options say."""
    check_writable(args.out)
    scene = load_scene(args.config, args.checkpoint)
    if args.loop:
        scene.loop()
    for path in export(scene.system, exporter_config(args), args.out):
        if path.parent == args.out and path.suffix != ".json":
            say(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    if scene.static:
        say("The scene stands still, and so do its files: nothing has set it in motion yet.")
    if torch.cuda.is_available():
        peak_memory(torch.cuda.max_memory_allocated())
