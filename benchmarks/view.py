"""Pictures a second of the viewer, while a camera goes around and time runs.

python benchmarks/view.py RUN [--stage NAME] [--size 128] [--seconds 10] [--record]

What is counted is what a browser is sent: drawn by the viewer's own functions at a fixed size and
encoded as JPEG, for each mode. `--record` writes the least of colour, opacity and depth down.
"""

import argparse
import math
import os
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as animate.py, which starts the viewer

import animate124  # noqa: F401, brings the bundled host where there is no threestudio
import cv2
import torch
from animate124.host.argument_types import positive_float, positive_int
from animate124.viewer import runs
from animate124.viewer.looking import MODES, Eye, cameras_of, draw
from animate124.viewer.scenes import Scenes
from measuring import now, record

QUICK = ("colour", "opacity", "depth")  # normals take six more densities a sample
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", help="(default: the newest)")
    parser.add_argument("--size", type=positive_int, default=128, help="pixels a side (128)")
    parser.add_argument("--seconds", type=positive_float, default=10.0, help="of each mode (10)")
    parser.add_argument("--record", action="store_true", help="in figures.json")
    return parser


def frames_a_second(scenes: Scenes, stage: str, mode: str, size: int, seconds: float) -> float:
    scene = scenes.of(stage, mode == "normal")

    def show(turn: float) -> None:
        angle = 2 * math.pi * turn
        eye = Eye((2.5 * math.cos(angle), 2.5 * math.sin(angle), 0.5))
        (picture,) = draw(scene, cameras_of(eye), torch.tensor([2 * turn % 1]), mode, size, size)
        cv2.imencode(".jpg", picture, QUALITY)

    show(0.0)  # compiles, and fills caches
    began, shown = now(), 0
    while (passed := now() - began) < seconds:
        show(passed / 8)  # around once in 8 seconds
        shown += 1
    return shown / (now() - began)


def main() -> None:
    args = options().parse_args()
    scenes = Scenes(args.run)
    stage = runs.chosen(args.run, args.stage).name
    scenes.look()
    began = time.perf_counter()
    scenes.of(stage)
    print(f"{stage} of {args.run}: loaded in {time.perf_counter() - began:.2f} s")
    found = {}
    for mode in MODES:
        found[mode] = frames_a_second(scenes, stage, mode, args.size, args.seconds)
        print(f"{mode:>8} {args.size} x {args.size}: {found[mode]:.1f} pictures a second")
    if args.record:
        least = min(found[mode] for mode in QUICK)
        record({"view.fps": (least, "pictures a second")})


if __name__ == "__main__":
    main()
