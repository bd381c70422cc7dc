"""How long tasks take to start: few steps of each of the quickstart's, beside another checkout's.

    python benchmarks/start.py [--beside PATH] [--repeats 3] [task.key=value ...]

Seconds from animate.py's start to the end of the first training step, and from each training task's
start to the end of its own. Runs of the two checkouts come in turn.
"""

import tempfile
from pathlib import Path

from measuring import record
from runs import in_turn, median, options, ratio, say, say_starts

FEW = [
    "--preset=toy",
    *(f"{task}=2" for task in ("token.max_train_steps", "result.frames")),
    *(f"stage{n}.trainer.max_steps=2" for n in (1, 2, 3)),
    "assets.faces=500",
    "assets.texture=64",
]


def main() -> None:
    args = options(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = in_turn(args.beside, Path(folder), [*FEW, *args.overrides], args.repeats)
    say_starts(ours, theirs)
    say("the whole, with 2 steps of each", ours, theirs, lambda run: run.seconds)
    figures = {
        "start.seconds": (median(ours, lambda run: run.start_s), "s to a task's first step"),
        "start.first_seconds": (median(ours, lambda run: run.to_first_step), "s from animate.py"),
    }
    if theirs:
        share = ratio(ours, theirs, lambda run: run.start_s)
        figures["start.ratio_to_before"] = share, "of the other build's start.seconds"
    record(figures, args.figures)


if __name__ == "__main__":
    main()
