"""Many scenes: one a GPU at a time on this machine, or as jobs of SLURM through submitit.

A scene is a run of animate.py by itself. One that fails doesn't stop the others.
"""

import os
import queue
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threestudio.launch import INPUT_ERRORS

from . import process, table
from .machine import cards
from .overrides import OVERRIDE, yes_or_no
from .places import ROOT, shown
from .presets import PRESETS, check_name
from .process import STOPPED, Interrupt, Outcome
from .request import COLUMNS, Request, options, worded
from .task import interpreter

NEEDED = ("image", "prompt")  # columns that every table has


@dataclass
class Entry:
    """A scene of a table."""

    label: str  # the scene's name
    words: list[str]  # of animate.py's command line
    log: Path


def read_table(
    path: Path, common: Sequence[str], out: Path, check: Callable[[list[str]], Any]
) -> list[Entry]:
    """The scenes of a CSV file: a row each; columns image, prompt, options and task.key.

    common: words of the command line that hold for all; a row's own ones win. An image is looked
    for beside the table if it isn't found from here.
    check: is called with the words of each scene, and raises what speaks against it.

    Raises:
        ValueError: a column that means nothing, or all rows that can't be run, and why.
    """
    columns, rows = table.read(path, NEEDED)
    tasks = list(dict.fromkeys(task for preset in PRESETS.values() for task in preset.tasks))
    for name in columns:
        if OVERRIDE.fullmatch(f"{name}="):
            check_name(f"{path}: the column {name}", name.partition(".")[0], tasks)
        elif name.replace("_", "-") not in ("image", *COLUMNS):
            others = [flag for flag in COLUMNS if flag not in NEEDED]
            raise ValueError(
                f"{path}: nothing reads the column {name!r}. Columns are image, prompt, "
                f"{', '.join(others)}, and overrides such as stage2.trainer.max_steps."
            )
    if not rows:
        raise ValueError(f"{path} has no scenes.")
    entries: dict[str, Entry] = {}
    first: dict[str, int] = {}
    wrong: list[str] = []
    for row in rows:
        try:
            entry = read_row(row.cells, common, path, out)
            if first.setdefault(entry.label, row.number) != row.number:
                before = first[entry.label]
                raise ValueError(f"goes to {out / entry.label}, as the scene of row {before} does.")
            check(entry.words)
            entries[entry.label] = entry
        except INPUT_ERRORS as error:
            text = error.args[0] if isinstance(error, KeyError) else error
            wrong.append(f"row {row.number}: {text}")
    if wrong:
        said = f"{len(wrong)} of {len(rows)} scenes can't be run, so none was begun:"
        raise ValueError("\n  ".join([f"{path}: {said}", *wrong]))
    return list(entries.values())


def read_row(cells: Mapping[str, str], common: Sequence[str], csv: Path, out: Path) -> Entry:
    for needed in NEEDED:
        if needed not in cells:
            raise ValueError(f"has no {needed}: its cell should say one.")
    image = Path(os.path.expanduser(cells["image"]))
    beside = csv.parent / image
    if not image.exists() and beside.exists():
        image = beside
    words = [str(image.absolute()), *worded("--prompt", cells["prompt"]), *common]
    for key, value in cells.items():
        flag = key.replace("_", "-")
        if "." in key:
            words.append(f"{key}={value}")
        elif flag in NEEDED:
            continue
        elif options(Request)[flag].default is False:  # a switch
            words = [word for word in words if word != f"--{flag}"]  # of the command line
            try:
                words += [f"--{flag}"] if yes_or_no(value) else []
            except ValueError as error:
                raise ValueError(f"{key}: {error}; yes or no would do.") from None
        else:
            words += worded(f"--{flag}", value)
    label = Request(image, cells["prompt"]).name
    return Entry(label, words, out / "batch" / f"{label}.log")


def visible_gpus(gpu: str | None) -> list[str | None]:
    """The GPUs to use, one scene each; [None] leaves it to the scene.

    Raises:
        ValueError: --gpu names one that isn't there.
    """
    if gpu is None and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return [None]
    return [*cards(gpu)] or [None]


def command(entry: Entry) -> list[str]:
    return [sys.executable, str(ROOT / "animate.py"), *entry.words]


def run_here(entries: Sequence[Entry], gpus: Sequence[str | None], interrupt: Interrupt) -> int:
    """Runs the scenes, as many at once as there are GPUs; the exit code."""
    waiting: queue.Queue[Entry] = queue.Queue()
    for entry in entries:
        waiting.put(entry)
    outcomes: dict[str, Outcome | None] = dict.fromkeys(entry.label for entry in entries)
    broken: list[BrokenPipeError] = []
    said = threading.Lock()

    def say(label: str, text: str) -> None:
        with said:
            try:
                print(f"{label}: {text}", flush=True)
            except BrokenPipeError as error:  # nobody reads it: all scenes stop
                broken.append(error)
                if not interrupt.asked:
                    interrupt.ask()

    def work(gpu: str | None) -> None:
        environment = {}
        if gpu is not None:
            environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu}
        while not interrupt.asked:
            try:
                entry = waiting.get_nowait()
            except queue.Empty:
                return
            say(entry.label, "starts" + (f" on GPU {gpu}" if gpu is not None else ""))
            try:
                outcomes[entry.label] = process.run(
                    command(entry),
                    Path.cwd(),
                    environment,
                    entry.log,
                    interrupt,
                    on_line=lambda text, label=entry.label: say(label, text) if text else None,
                    tick=lambda: None,
                )
            except OSError as error:  # its log can't be written
                outcomes[entry.label] = Outcome(1, 0.0)
                say(entry.label, f"error: {error}")

    threads = [threading.Thread(target=work, args=(gpu,), daemon=True) for gpu in gpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # signals reach this thread between joins
            thread.join(0.2)
    if broken:
        raise broken[0]
    codes = {label: outcome.code if outcome else None for label, outcome in outcomes.items()}
    return summarise(entries, codes, interrupt.asked)


def summarise(entries: Sequence[Entry], codes: Mapping[str, int | None], stopped: bool) -> int:
    """Prints how each scene ended; 0 if all did well, STOPPED after Ctrl-C, else 1.

    codes: exit code of each scene; None where it wasn't begun.
    """
    says = {0: "done", None: "not begun", STOPPED: "stopped"}
    print("\nSummary")
    for entry in entries:
        code = codes[entry.label]
        failed = f"failed (exit code {code}), see {entry.log}"
        print(f"  {entry.label}: {says.get(code, failed)}")
    bad = [label for label, code in codes.items() if code != 0]
    print(f"{len(codes) - len(bad)} of {len(codes)} scenes are done.", flush=True)
    return 0 if not bad else STOPPED if stopped else 1


# ---------------------------------------------------------------------------------- SLURM


def submit(
    entries: Sequence[Entry], folder: Path, slurm: Mapping[str, Any], cluster: str | None = None
) -> list[Any]:
    """Hands each scene to SLURM as a job with one GPU; returns submitit's jobs.

    slurm: parameters of submitit's executor; cluster: `local` runs the jobs on this machine (it
    is also what submitit takes where there is no SLURM).

    Raises:
        ValueError: submitit isn't installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError('--launcher submitit needs `pip install -e ".[slurm]"`.') from error
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
    executor.update_parameters(name="animate124", gpus_per_node=1, cpus_per_task=4, **slurm)
    if executor.cluster != "slurm":
        print(f"There is no SLURM here: submitit runs the jobs as {executor.cluster} processes.")
    jobs = []
    for entry in entries:
        # a class of submitit's own: the job needn't import this checkout
        task = submitit.helpers.CommandFunction(command(entry), cwd=str(Path.cwd()))
        jobs.append(executor.submit(task))
        print(f"{entry.label}: job {jobs[-1].job_id}, {jobs[-1].paths.stdout}", flush=True)
    return jobs


def wait_for(entries: Sequence[Entry], jobs: Sequence[Any]) -> int:
    """Waits for jobs and says how they ended; Ctrl-C stops the waiting, not the jobs."""
    codes: dict[str, int | None] = {}
    try:
        for entry, job in zip(entries, jobs, strict=True):
            failed = job.exception() is not None
            codes[entry.label] = int(failed)
            print(f"{entry.label}: {'failed' if failed else 'done'}", flush=True)
    except KeyboardInterrupt:
        numbers = " ".join(job.job_id for job in jobs)
        print(
            f"\nThe jobs go on. `scancel {numbers}` stops them; the same command again waits for "
            "new ones, which skip what is done."
        )
        return STOPPED
    for entry, job in zip(entries, jobs, strict=True):
        entry.log = job.paths.stderr
    return summarise(entries, codes, stopped=False)


def shown_command(entry: Entry) -> str:
    return shlex.join([interpreter(), shown(ROOT / "animate.py"), *entry.words])
