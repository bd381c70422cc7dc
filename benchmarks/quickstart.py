"""The quickstart from the photo to the result, beside another checkout's.

    python benchmarks/quickstart.py --beside PATH [--repeats 2] [task.key=value ...]

Wall seconds of the whole and of each task, of a step, and until training begins. Runs of the two
checkouts come in turn; overrides hold for both. On a machine that does other things the ratio is
what counts.
"""

import tempfile
from pathlib import Path

from measuring import record
from runs import in_turn, median, options, ratio, say, say_starts


def main() -> None:
    args = options(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--preset=toy", *args.overrides]
        ours, theirs = in_turn(args.beside, Path(folder), words, args.repeats)
    say("the quickstart", ours, theirs, lambda run: run.seconds)
    for name in ours[0].tasks:
        say(name, ours, theirs, lambda run, name=name: run.tasks[name].seconds)
    for name in ours[0].trained:
        say(f"{name}, a step", ours, theirs, lambda run, name=name: run.tasks[name].step_s)
    say_starts(ours, theirs)
    measured = {"quickstart.seconds": (median(ours, lambda run: run.seconds), "s")}
    if theirs:
        share = ratio(ours, theirs, lambda run: run.seconds)
        measured["quickstart.ratio_to_before"] = share, "of the other build's time"
    record(measured, args.figures)


if __name__ == "__main__":
    main()
