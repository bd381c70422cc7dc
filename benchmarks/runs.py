"""Whole runs of animate.py as a person waits for them, of this checkout and of another one.

What the tasks tell while they run (events.py) is read beside the clock. Seconds are those of
the wall clock; GB are 10^9 bytes.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import animate124
from animate124.events import TRAINING, Progress, Reader
from animate124.host.argument_types import positive_int
from measuring import FIGURES

ROOT = Path(animate124.__file__).parent
IMAGE, PROMPT, SUBJECT = "load/toy-panda/image.png", "a panda is dancing", "panda"
EVERY = 0.05  # seconds between two looks at what is told


@dataclass
class Timed:
    """A task of a run."""

    began: float  # seconds since animate.py started
    steps: list[tuple[float, int]] = field(default_factory=list)  # when how many were done
    seconds: float = 0.0
    peak: dict[str, float] = field(default_factory=dict)  # GB of "host" and "gpu"

    @property
    def to_first_step(self) -> float:
        """From its start to the end of its first training step."""
        return self.steps[0][0] - self.began

    @property
    def step_s(self) -> float:
        """Mean of the later half's steps, since the first ones compile and record, without those
        that take half as long again as the median: checkpoints, of which a short training writes
        as many as a long one, and a recording for a clip of another kind. NaN of a task that told
        of its steps but once: its start is in them."""
        later = self.steps[(len(self.steps) - 1) // 2 :]
        times = [
            (end - start) / (done - before)
            for (start, before), (end, done) in itertools.pairwise(later)
            for _ in range(before, done)
        ]
        if not times:
            return math.nan
        most = 1.5 * statistics.median(times)
        return statistics.mean(time for time in times if time <= most)


@dataclass
class Run:
    seconds: float
    tasks: dict[str, Timed]

    @property
    def trained(self) -> dict[str, Timed]:
        return {name: task for name, task in self.tasks.items() if task.steps}

    @property
    def to_first_step(self) -> float:
        """From animate.py's start."""
        return min(task.steps[0][0] for task in self.trained.values())

    @property
    def start_s(self) -> float:
        """From a training task's start to the end of its first step, the mean of all."""
        return statistics.mean(task.to_first_step for task in self.trained.values())


def listen(logs: Path, readers: dict[str, Reader], tasks: dict[str, Timed], now: float) -> None:
    """Notes what was told since the last time."""
    for log in logs.glob("*.log"):
        name = log.stem
        if name not in tasks:
            tasks[name] = Timed(now)
            readers[name] = Reader(log.with_suffix(".events.jsonl"))
    for name, reader in readers.items():
        for event in reader.new():
            if isinstance(event, Progress) and event.of == TRAINING and event.done:
                tasks[name].steps.append((now, event.done))


def run(checkout: Path, out: Path, words: Sequence[str], gpu: str | None = None) -> Run:
    """A checkout's animate.py from the photo to the result, into an empty folder.

    gpu: the one that it sees; None for those that are there.

    Raises:
        SystemExit: it failed; what it said is on the standard error.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "animate.py", IMAGE, "--prompt", PROMPT, "--subject", SUBJECT]
    command += ["--out", str(out), *words]
    readers: dict[str, Reader] = {}
    tasks: dict[str, Timed] = {}
    scene = out / "toy-panda-a_panda_is_dancing"
    began = time.perf_counter()
    seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    process = subprocess.Popen(command, cwd=checkout, stdout=sys.stderr, env={**os.environ, **seen})
    try:
        while process.poll() is None:
            listen(scene / "logs", readers, tasks, time.perf_counter() - began)
            time.sleep(EVERY)
    finally:
        process.wait()  # a Ctrl-C has reached it, too, and it saves into `out`
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"animate.py of {checkout} failed ({process.returncode}), see above.")
    for name, held in json.loads((scene / "manifest.json").read_text())["steps"].items():
        tasks[name].seconds, tasks[name].peak = held["seconds"], held["peak_memory"]
    return Run(seconds, tasks)


def in_turn(
    beside: Path | None,
    folder: Path,
    words: Sequence[str],
    repeats: int,
    own: Sequence[str] = (),
    kept: Path | None = None,
) -> tuple[list[Run], list[Run]]:
    """Runs of this checkout, with words of its `own`, and between them as many of the other one.

    kept: a file of the runs that are done; they aren't made again.
    """
    ours, theirs = [], []
    for i in range(repeats):
        ours.append(run_once(kept, i, ROOT, folder / "ours", [*own, *words]))
        if beside is not None:
            theirs.append(run_once(kept, i, beside.resolve(), folder / "beside", words))
    return ours, theirs


def run_once(kept: Path | None, i: int, checkout: Path, out: Path, words: Sequence[str]) -> Run:
    """The i-th `run` of a checkout with these words, from the file or into it."""
    held = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    name = " ".join([str(checkout), *words, f"#{i}"])
    if name not in held:
        made = run(checkout, out, words)
        if kept is None:
            return made
        held[name] = asdict(made)
        kept.write_text(json.dumps(held, indent=2))
    return run_of(held[name])


def run_of(held: dict[str, Any]) -> Run:
    """As the file has it."""
    tasks = {
        name: Timed(**{**of, "steps": [*map(tuple, of["steps"])]})
        for name, of in held["tasks"].items()
    }
    return Run(held["seconds"], tasks)


def at_once(
    beside: Path, folder: Path, words: Sequence[str], own: Sequence[str]
) -> tuple[list[Run], list[Run]]:
    """A run of this checkout on the first GPU, with words of its `own` besides, and one of the
    other on the second at the same time."""
    with ThreadPoolExecutor() as pool:
        theirs = pool.submit(run, beside.resolve(), folder / "beside", words, "1")
        ours = pool.submit(run, ROOT, folder / "ours", [*own, *words], "0")
        return [ours.result()], [theirs.result()]


def other_checkout(text: str) -> Path:
    """Of a command line."""
    if not (Path(text) / "animate.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no animate.py: a checkout of this project")
    return Path(text)


def options(description: str) -> argparse.ArgumentParser:
    """Of a script that runs animate.py."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--beside", type=other_checkout, help="another checkout, which runs in turn with this"
    )
    parser.add_argument("--repeats", type=positive_int, default=1, help="runs of each")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where figures are written")
    parser.add_argument("overrides", nargs="*", metavar="task.key=value")
    return parser


def median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def ratio(ours: Sequence[Run], theirs: Sequence[Run], of: Callable[[Run], float]) -> float:
    """Of runs in turn, pair by pair."""
    return statistics.median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True))


def say(label: str, ours: Sequence[Run], theirs: Sequence[Run], of: Callable[[Run], float]) -> None:
    """A line of seconds: ours, and beside them the other checkout's."""
    more = f"; beside it {median(theirs, of):.2f}, {ratio(ours, theirs, of):.3f}" if theirs else ""
    print(f"{label}: {median(ours, of):.2f} s{more}", flush=True)


def say_starts(ours: Sequence[Run], theirs: Sequence[Run]) -> None:
    """How long it takes until something is trained."""
    say("animate.py to the first training step", ours, theirs, lambda run: run.to_first_step)
    for name in ours[0].trained:
        say(f"{name} to its first step", ours, theirs, lambda r, n=name: r.tasks[n].to_first_step)
    say("a training task to its first step, mean", ours, theirs, lambda run: run.start_s)
