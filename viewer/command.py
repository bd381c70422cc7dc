"""`animate124 view RUN`: its command line."""

import argparse
import sys
import threading
from collections.abc import Sequence

from argument_types import finite_number, path, whole_number

from ..events import say_error
from ..pipeline.live import check_viewer
from . import runs
from .scenes import Scenes


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="animate124 view",
        description="A run's scenes, live in a browser: from any side, at any time.",
    )
    p.add_argument(
        "run", type=path, metavar="RUN", help="outputs/<image>-<prompt>, or a trial of launch.py"
    )
    p.add_argument("--stage", metavar="NAME", help="such as stage1 (default: the newest)")
    p.add_argument("--loop", action="store_true", help="the motion's end meets its start")
    p.add_argument(
        "--seconds", type=finite_number(0.1, 600), default=2.0, help="the motion takes (2)"
    )
    p.add_argument(
        "--size",
        type=whole_number(32, 4096),
        default=512,
        metavar="PIXELS",
        help="of a picture's height at rest (512); while something moves it is what is fast enough",
    )
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: this machine alone; 0.0.0.0: whoever reaches it)",
    )
    p.add_argument("--port", type=whole_number(1, 65535), default=8080, help="or the next free one")
    p.add_argument(
        "--follow", action="store_true", help="wait for the first checkpoint, if there is none yet"
    )
    p.add_argument(
        "--end-with-input", action="store_true", help="stop when the standard input ends"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; 1 after an input that can't be used, which is one message."""
    args = parser().parse_args(arguments)
    try:
        check(args)
        serve(args)
    except (ValueError, OSError) as error:
        say_error(error)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def check(args: argparse.Namespace) -> None:
    """A ValueError for a run that there is nothing to see of, and where viser is missing."""
    check_viewer()
    if not args.follow:
        stage = runs.chosen(args.run, args.stage)
        scenes = Scenes(args.run, args.loop)
        scenes.look()
        scenes.of(stage.name)


def serve(args: argparse.Namespace) -> None:
    from .server import Viewer

    viewer = Viewer(
        Scenes(args.run, args.loop),
        stage=args.stage,
        host=args.host,
        port=args.port,
        size=args.size,
        seconds=args.seconds,
    )
    if args.end_with_input:
        threading.Thread(target=lambda: (sys.stdin.read(), viewer.over.set()), daemon=True).start()
    print(f"Look at {viewer.address} (Ctrl-C ends it).", flush=True)
    try:
        viewer.run()
    finally:
        viewer.stop()
