"""animate.py's command line, once parsed: one scene or many, a plan to print or to run."""

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import batch
from .fork_server import forks
from .live import check_viewer
from .machine import CPU
from .overrides import by_task, is_override, read_words
from .plan import make_plan
from .process import Interrupt, execute
from .request import Call, Request, parser, taken, words_of
from .run import TaskFailed, beginning, check_here, describe, run_request
from .task import interpreter


def run(args: argparse.Namespace, argv: Sequence[str], fresh: bool = False) -> int:
    """Does what the flags ask for; returns the exit code. Errors of input are one message.

    fresh: this process has only imported so far, so that tasks can be forks of it.
    """
    call = Call(**taken(Call, args))
    try:
        if call.batch is not None:
            return run_table(call.batch, call, args)
        return run_one(call, args, argv, fresh)
    except BrokenPipeError:
        # the interpreter's own last flush would fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(BrokenPipeError):
            print(
                "error: nobody reads what is printed here any more (`| head`?), so the run was "
                "stopped, as by Ctrl-C. The same command goes on.",
                file=sys.stderr,
                flush=True,
            )
        return 1
    except (ValueError, KeyError, OSError, TaskFailed) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {text}", file=sys.stderr)
        return 1


def run_one(call: Call, args: argparse.Namespace, argv: Sequence[str], fresh: bool) -> int:
    if (call.launcher, call.slurm_partition, call.slurm_time) != ("local", None, None):
        raise ValueError("--launcher submitit, --slurm-partition and --slurm-time go with --batch.")
    request = request_of(args)
    if call.dry_run:
        print(describe(make_plan(request, check=True), beginning(request)))
        return 0
    if call.viewer:
        check_viewer()
    starting = forks() if fresh else contextlib.nullcontext(execute)
    with starting as start, Interrupt() as interrupt:
        return run_request(request, go_on(argv), interrupt, call.viewer, start)


def request_of(args: argparse.Namespace) -> Request:
    """What the command line asks for.

    Raises:
        ValueError: no image or several, no prompt; FileNotFoundError: no image.
    """
    images = [word for word in args.words if not is_override(word)]
    if len(images) != 1:
        what = f"these were given: {', '.join(images)}" if images else "none was given"
        raise ValueError(
            f"One image is needed, {what}. For many there is --batch; overrides look like "
            "stage2.trainer.max_steps=500."
        )
    image = Path(os.path.expanduser(images[0]))
    if not image.is_file():
        what = " (it is a folder)" if image.is_dir() else ""
        raise FileNotFoundError(f"There is no image {image}{what}. Pass the path of a photo.")
    if not re.search(r"\w", args.prompt or ""):
        raise ValueError('--prompt is needed, in words, such as --prompt "a panda is dancing".')
    overrides = by_task(word for word in args.words if is_override(word))
    given = {**taken(Request, args), "prompt": args.prompt.strip()}
    return Request(image=image, **given, overrides=overrides)


def go_on(argv: Sequence[str]) -> list[str]:
    """The command line that continues a run: the same without --from, which would start again."""
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--from":
            next(rest)
        elif not word.startswith("--from="):
            words.append(word)
    door, *rest = words
    if not door.endswith(".py"):  # the command of an installed package
        return [os.path.basename(door), *rest]
    return [interpreter(Path.cwd()), door, *rest]


def run_table(table: Path, call: Call, args: argparse.Namespace) -> int:
    """Every scene of a table."""
    images = [word for word in args.words if not is_override(word)]
    if call.viewer:
        raise ValueError("--viewer shows one scene; `animate124 view FOLDER` one of a table.")
    if images or args.prompt:
        raise ValueError("With --batch the images and prompts are those of the table.")
    if call.launcher == "submitit" and args.gpu is not None:
        raise ValueError(
            "--gpu is for this machine; with --launcher submitit SLURM gives each job one."
        )
    gpus = batch.visible_gpus(args.gpu)

    def check(words: Sequence[str]) -> None:
        plan = make_plan(request_of(read_words(parser(), words)), check=True)
        if call.launcher == "local" and not call.dry_run:
            check_here(plan)

    entries = batch.read_table(table, common_words(args), args.out, check)
    if call.dry_run:
        for entry in entries:
            print(batch.shown_command(entry))
        return 0
    comparison = batch.compare(entries, args.out)
    if call.launcher == "submitit":
        slurm = {"slurm_partition": call.slurm_partition, "timeout_min": call.slurm_time}
        slurm = {key: value for key, value in slurm.items() if value is not None}
        jobs = batch.submit(entries, args.out / "batch" / "jobs", slurm)
        return batch.wait_for(entries, jobs, comparison)
    # a scene that gets a second Ctrl-C kills its own task
    with Interrupt(second=signal.SIGINT) as interrupt:
        code = batch.run_here(entries, gpus, interrupt, comparison)
    if interrupt.asked:
        print(f"To go on:\n  {shlex.join(go_on(sys.argv))}")
        if any(word.startswith("--from") for entry in entries for word in entry.words):
            print("(Without a column `from`, which would begin those tasks again.)")
    return code


def common_words(args: argparse.Namespace) -> list[str]:
    """Options of a table's command line that hold for each scene."""
    given = {**taken(Request, args), "out": args.out.absolute()}
    del given["prompt"]
    if args.gpu != CPU:
        del given["gpu"]  # a scene is given one
    return [*words_of(given), *(word for word in args.words if is_override(word))]
