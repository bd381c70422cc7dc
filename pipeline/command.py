"""animate.py's command line, once parsed: one scene or many, a plan to print or to run."""

import argparse
import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import batch
from .machine import CPU
from .overrides import by_task, is_override, option, read_words
from .plan import interpreter, make_plan, script_parser
from .presets import TASKS
from .process import Interrupt
from .request import Request
from .run import TaskFailed, beginning, check_here, describe, run_request


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Does what the flags ask for; returns the exit code. Errors of input are one message."""
    try:
        return run_table(args) if args.batch is not None else run_one(args, argv)
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


def run_one(args: argparse.Namespace, argv: Sequence[str]) -> int:
    for name in ("slurm_partition", "slurm_time"):
        if getattr(args, name) is not None or args.launcher != "local":
            raise ValueError(
                "--launcher submitit, --slurm-partition and --slurm-time go with --batch."
            )
    request = request_of(args)
    if args.dry_run:
        plan = make_plan(request, args.until, check=True)
        print(describe(plan, beginning(request, args.start)))
        return 0
    with Interrupt() as interrupt:
        return run_request(request, args.start, args.until, go_on(argv), interrupt)


def check_task(option: str, name: str | None) -> None:
    if name is not None and name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"{option} {name}: the tasks are {', '.join(TASKS)}{hint}")


def request_of(args: argparse.Namespace) -> Request:
    """The scene of the command line.

    Raises:
        ValueError: no image or several, no prompt, a bad task or override; FileNotFoundError: no
            image.
    """
    check_task("--from", args.start)
    check_task("--until", args.until)
    if args.start is not None and TASKS.index(args.start) > TASKS.index(args.until):
        raise ValueError(f"--from {args.start} is after --until {args.until}.")
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
    return Request(
        image=image,
        prompt=args.prompt.strip(),
        out=args.out,
        subject=args.subject,
        static_prompt=args.static_prompt,
        refine_prompt=args.refine_prompt,
        preset=args.preset,
        vram=args.vram,
        gpu=args.gpu,
        fast=args.fast,
        overrides=by_task(word for word in args.words if is_override(word)),
    )


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


def run_table(args: argparse.Namespace) -> int:
    """Every scene of a table."""
    images = [word for word in args.words if not is_override(word)]
    if images or args.prompt:
        raise ValueError("With --batch the images and prompts are those of the table.")
    if args.launcher == "submitit" and args.gpu is not None:
        raise ValueError(
            "--gpu is for this machine; with --launcher submitit SLURM gives each job one."
        )
    gpus = batch.visible_gpus(args.gpu)
    parser = script_parser("animate.py")

    def check(words: Sequence[str]) -> None:
        row = read_words(parser, words)
        plan = make_plan(request_of(row), row.until, check=True)
        if args.launcher == "local" and not args.dry_run:
            check_here(plan, row.start)

    entries = batch.read_table(args.batch, common_words(args), args.out, check)
    if args.dry_run:
        for entry in entries:
            print(batch.shown_command(entry))
        return 0
    if args.launcher == "submitit":
        slurm = {"slurm_partition": args.slurm_partition, "timeout_min": args.slurm_time}
        slurm = {key: value for key, value in slurm.items() if value is not None}
        jobs = batch.submit(entries, args.out / "batch" / "jobs", slurm)
        return batch.wait_for(entries, jobs)
    # a scene that gets a second Ctrl-C kills its own task
    with Interrupt(second=signal.SIGINT) as interrupt:
        code = batch.run_here(entries, gpus, interrupt)
    if interrupt.asked:
        print(f"To go on:\n  {shlex.join(go_on(sys.argv))}")
        if any(word.startswith("--from") for entry in entries for word in entry.words):
            print("(Without a column `from`, which would begin those tasks again.)")
    return code


def common_words(args: argparse.Namespace) -> list[str]:
    """Options of a table's command line that hold for each scene."""
    words = ["--preset", args.preset, "--out", str(args.out.absolute())]
    for name in ("subject", "static_prompt", "refine_prompt", "vram"):
        if getattr(args, name) is not None:
            words += option(f"--{name.replace('_', '-')}", str(getattr(args, name)))
    words += ["--gpu", CPU] if args.gpu == CPU else []  # of others a scene is given one
    words += ["--fast"] if args.fast else []
    words += ["--from", args.start] if args.start is not None else []
    words += ["--until", args.until] if args.until != "result" else []
    return words + [word for word in args.words if is_override(word)]
