"""Many scenes: one a GPU at a time on this machine, or as jobs of SLURM through submitit.

A scene is a run of animate.py by itself. One that fails doesn't stop the others.
"""

import os
import queue
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threestudio.launch import INPUT_ERRORS

from . import process, table
from .comparison import RUNS, Comparison, Scene
from .machine import cards
from .overrides import OVERRIDE, yes_or_no
from .places import ROOT, shown
from .presets import PRESETS, check_name
from .process import STOPPED, Interrupt
from .request import COLUMNS, Request, options, worded
from .task import interpreter

NEEDED = ("image", "prompt")  # columns that every table has


@dataclass
class Entry:
    """A scene of a table."""

    request: Request  # image, prompt and folder; the other options are in the words
    words: list[str]  # of animate.py's command line
    log: Path

    @property
    def label(self) -> str:
        return self.request.name


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
        scenes = "scene" if len(rows) == 1 else "scenes"
        said = f"{len(wrong)} of {len(rows)} {scenes} can't be run, so none was begun:"
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
    request = Request(image, cells["prompt"].strip(), out=out)
    return Entry(request, words, out / "batch" / f"{request.name}.log")


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


def compare(entries: Sequence[Entry], out: Path) -> Comparison:
    """The page of all scenes, which isn't written yet."""
    scenes = {entry.label: Scene(entry.request, entry.log) for entry in entries}
    return Comparison(out / "batch" / "scenes.html", scenes)


class Voice:
    """Prints what scenes say, line by line; all of them stop when nobody reads it any more."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self.broken: BrokenPipeError | None = None
        self._said = threading.Lock()

    def say(self, label: str, text: str) -> None:
        with self._said:
            try:
                print(f"{label}: {text}", flush=True)
            except BrokenPipeError as error:
                self.broken = error
                if not self.interrupt.asked:
                    self.interrupt.ask()


class AtWork:
    """How long each GPU had a scene, from the beginning until the last one ended."""

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self.gpus = gpus
        self.seconds = [0.0] * len(gpus)
        self.began = self.ended = time.monotonic()

    @contextmanager
    def on(self, place: int) -> Iterator[None]:
        """While the GPU that stands there in `gpus` has one."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.ended = time.monotonic()
            self.seconds[place] += self.ended - began

    def say(self) -> None:
        whole = self.ended - self.began
        busy = zip(self.gpus, self.seconds, strict=True)
        said = ", ".join(f"GPU {gpu} {seconds / whole:.1%}" for gpu, seconds in busy)
        print(f"Had a scene, of {whole:.1f} s: {said}")


def run_scene(entry: Entry, gpu: str | None, voice: Voice) -> int:
    """Runs a scene; its exit code."""
    environment = {}
    if gpu is not None:
        environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu}
    voice.say(entry.label, "starts" + (f" on GPU {gpu}" if gpu is not None else ""))
    try:
        return process.run(
            command(entry),
            Path.cwd(),
            environment,
            entry.log,
            voice.interrupt,
            on_line=lambda text: voice.say(entry.label, text) if text else None,
            tick=lambda: None,
        ).code
    except OSError as error:  # its log can't be written
        voice.say(entry.label, f"error: {error}")
        return 1


def run_here(
    entries: Sequence[Entry],
    gpus: Sequence[str | None],
    interrupt: Interrupt,
    comparison: Comparison,
) -> int:
    """Runs the scenes, as many at once as there are GPUs; the exit code."""
    waiting: queue.Queue[Entry] = queue.Queue()
    for entry in entries:
        waiting.put(entry)
    codes: dict[str, int | None] = dict.fromkeys(entry.label for entry in entries)
    voice = Voice(interrupt)

    at_work = AtWork(gpus)

    def work(place: int) -> None:
        while not interrupt.asked:
            try:
                entry = waiting.get_nowait()
            except queue.Empty:
                return
            comparison.note({entry.label: RUNS})
            with at_work.on(place):
                codes[entry.label] = code = run_scene(entry, gpus[place], voice)
            comparison.note({entry.label: ending(code)})

    places = range(len(gpus))
    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # signals reach this thread between joins
            thread.join(0.2)
    if len(gpus) > 1 and at_work.ended > at_work.began:
        at_work.say()
    comparison.note({label: ending(code) for label, code in codes.items()})
    if voice.broken is not None:
        raise voice.broken
    return summarise(entries, codes, interrupt.asked, comparison)


def ending(code: int | None) -> str:
    """How a scene ended, by its exit code; None where it wasn't begun."""
    says = {0: "done", None: "not begun", STOPPED: "stopped"}
    return says.get(code, f"failed (exit code {code})")


def summarise(
    entries: Sequence[Entry], codes: Mapping[str, int | None], stopped: bool, comparison: Comparison
) -> int:
    """Says how each scene ended; 0 if all did well, STOPPED after Ctrl-C, else 1.

    codes: exit code of each scene; None where it wasn't begun.
    """
    print("\nSummary")
    for entry in entries:
        code = codes[entry.label]
        failed = code not in (0, None, STOPPED)
        print(f"  {entry.label}: {ending(code)}" + (f", see {entry.log}" if failed else ""))
    bad = [label for label, code in codes.items() if code != 0]
    seen = f" Side by side: {comparison.path}" if comparison.path.is_file() else ""
    scenes = "scene is" if len(codes) == 1 else "scenes are"
    print(f"{len(codes) - len(bad)} of {len(codes)} {scenes} done.{seen}", flush=True)
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


def wait_for(entries: Sequence[Entry], jobs: Sequence[Any], comparison: Comparison) -> int:
    """Waits for jobs and says how they ended; Ctrl-C stops the waiting, not the jobs."""
    codes: dict[str, int | None] = {}
    for entry, job in zip(entries, jobs, strict=True):
        comparison.scenes[entry.label].log = entry.log = job.paths.stderr
    comparison.note({})
    try:
        for entry, job in zip(entries, jobs, strict=True):
            code = int(job.exception() is not None)
            codes[entry.label] = code
            comparison.note({entry.label: ending(code)})
            print(f"{entry.label}: {'failed' if code else 'done'}", flush=True)
    except KeyboardInterrupt:
        numbers = " ".join(job.job_id for job in jobs)
        print(
            f"\nThe jobs go on. `scancel {numbers}` stops them; the same command again waits for "
            "new ones, which skip what is done."
        )
        return STOPPED
    return summarise(entries, codes, stopped=False, comparison=comparison)


def shown_command(entry: Entry) -> str:
    return shlex.join([interpreter(), shown(ROOT / "animate.py"), *entry.words])
