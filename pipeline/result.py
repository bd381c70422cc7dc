"""The result of a scene: videos and a contact sheet, rendered from a stage's checkpoint.

python pipeline/result.py --config <trial>/configs/parsed.yaml --checkpoint <trial>/ckpts/last.ckpt
--out <folder>

The scene is built without its priors and without normals. Angles are degrees, tau is in [0, 1].
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as launch.py
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "host"))

from argument_types import path, whole_number

ANIMATION, REFERENCE, TURNTABLE = "animation.mp4", "reference_view.mp4", "turntable.mp4"
SHEET = "contact_sheet.png"
REPORT = ("report.json", "report.html")  # what pipeline/report.py writes beside them
ROUNDS = 2  # times that time runs while the camera turns once
BATCH = 8  # frames rendered together


def file_names(static: bool) -> list[str]:
    """What is written; a scene that stands still has no video in which time runs."""
    return [TURNTABLE, SHEET] if static else [ANIMATION, REFERENCE, TURNTABLE, SHEET]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--config", type=path, required=True, help="a trial's configs/parsed.yaml")
    p.add_argument("--checkpoint", type=path, required=True, help="its ckpts/last.ckpt")
    p.add_argument("--out", type=path, required=True, help="folder to write to")
    p.add_argument(
        "--size",
        type=whole_number(8, 4096),
        help="pixels of a side (default: the config's eval_height)",
    )
    p.add_argument(
        "--frames", type=whole_number(1, 10000), default=48, help="frames from tau 0 to 1 (48)"
    )
    p.add_argument("--fps", type=whole_number(1, 240), default=24, help="frames a second (24)")
    p.add_argument(
        "--views", type=whole_number(1, 64), default=4, help="rows of the contact sheet (4)"
    )
    p.add_argument(
        "--times", type=whole_number(1, 64), default=5, help="columns of the contact sheet (5)"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders; 0, or 1 after an input that can't be used, which is one message."""
    args = parser().parse_args(arguments)
    from animate124.events import say_error, tell_messages
    from animate124.pipeline.rendering import write_result
    from threestudio.launch import INPUT_ERRORS

    tell_messages()
    try:
        write_result(args)
    except INPUT_ERRORS as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        say_error(text)
        return 1
    return 0


if __name__ == "__main__":
    # this checkout, installed or not, on the bundled host; its folders are no top-level packages
    root = Path(__file__).resolve().parent.parent
    here = (root, root / "pipeline")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in here]
    sys.path.insert(0, str(root / "host"))
    try:
        from threestudio.extensions import load_extension

        load_extension("animate124", root)
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
