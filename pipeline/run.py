"""Runs a scene's plan: skips what is done, goes on with what is half done, and says what it does.

Prints go through the progress line; everything that a step prints is in `<scene>/logs/<step>.log`.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..files.whole import clear_parts, running
from . import process, report
from .manifest import Manifest, State
from .plan import ROOT, Plan, Step, make_plan
from .presets import STEPS
from .process import STOPPED, Interrupt
from .progress import Estimate, ProgressLine, Work, duration, read_bar
from .scene import Scene
from .watcher import GRACE
from .wording import unknown_to_the_toy

# lines of a step that tell a person nothing: tables, bars, the library's own remarks
NOISE = re.compile(
    r"^\s*$|^[┏┃┡│└]|\d+%\||it/s|\?/s|^(Non-)?[Tt]rainable params|^Total |^Modules in |^Loading |"
    r"^Pictures will be|^Test results are|^Done:|^wrote |^Stopped after|^To go on from|"
    r"^  python launch\.py|^\[transformers\]"
)
TAIL = 15  # lines of a failed step that are shown


class StepFailed(RuntimeError):
    """A step's process ended with an error; the message shows its last lines."""


def pending(plan: Plan, manifest: Manifest) -> list[tuple[Step, State]]:
    """Each step's state, as far as it can be known: what follows a step that runs is `new`."""
    states: list[tuple[Step, State]] = []
    made: set[Path] = set()  # files that a run of the plan will write anew
    for step in plan.steps:
        later = made.intersection(step.reads.values())
        state = "new" if later else manifest.state(step.name, step.inputs(), step.checkpoint)
        if state != "done":
            made.update(step.outputs)
        states.append((step, state))
    return states


def describe(plan: Plan, manifest: Manifest) -> str:
    """The plan as --dry-run prints it."""
    says = {"done": "done", "half": "goes on from its last checkpoint", "new": "runs"}
    lines = [f"# {plan.scene.folder}: preset {plan.scene.preset}", *remarks(plan)]
    lines += [f"# the commands run in {ROOT}"] if Path.cwd() != ROOT else []
    for step, state in pending(plan, manifest):
        lines += ["", f"# {step.name}: {says[state]}", step.shown(again=state == "half")]
    return "\n".join(lines)


def remarks(plan: Plan) -> list[str]:
    """What a person should know before the plan runs."""
    scene, lines = plan.scene, []
    if plan.subject is None:
        lines.append(
            f"# who moves isn't clear from {scene.prompt!r}: SUBJECT comes from the picture's "
            "caption, which is not there yet (--subject says it now)"
        )
    lines += [
        f"# {key}: {text!r}" for key, text in plan.prompts.items() if key != "stage2" and text
    ]
    if scene.preset == "toy" and plan.subject is not None:
        line = unknown_to_the_toy(*plan.prompts.values())
        lines += [f"# {line}"] if line else []
    if scene.vram is not None and not plan.memory:
        lines.append(f"# --vram {scene.vram:g}: no option is needed for that")
    for stage, options in plan.memory.items():
        options = " ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"# --vram {scene.vram:g} sets in {stage}: {options}")
    return lines


@contextlib.contextmanager
def locked(folder: Path, interrupt: Interrupt | None = None) -> Iterator[int]:
    """One run at a time works in a scene's folder; a second one is a ValueError.

    Yields the number of the lock's file: a process that inherits it holds the lock as well, so that
    a step which outlives its run for a moment keeps the next one waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        wait_for_lock(file, folder, interrupt)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def wait_for_lock(file: TextIO, folder: Path, interrupt: Interrupt | None) -> None:
    """Takes the lock; waits for it as long as a step of a run that is gone may need to end.

    Raises:
        ValueError: another run has it.
    """
    until = time.monotonic() + GRACE + 15
    waiting = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
        asked = interrupt is not None and interrupt.asked
        if asked or time.monotonic() > until or (holder.isdigit() and running(int(holder))):
            raise ValueError(
                f"Another run (process {holder}) is at work in {folder}. "
                "Wait for it, or stop it with Ctrl-C where it runs."
            )
        if not waiting:
            print(f"Waiting for a step of a run that is gone (process {holder}).", flush=True)
        waiting = True
        time.sleep(0.2)


def run_scene(
    scene: Scene, start: str | None, until: str, go_on: Sequence[str], interrupt: Interrupt
) -> int:
    """Runs what is not done; returns the exit code.

    start: forces this step and those after it; go_on: the command line that continues this run.
    """
    plan = make_plan(scene, until, check=True)
    with locked(scene.folder, interrupt) as lock:
        clear_parts(scene.folder)
        manifest = Manifest(scene.folder)
        if start is not None:
            manifest.forget(STEPS[STEPS.index(start) :])
        for line in remarks(plan):
            print(line.removeprefix("# "), flush=True)
        estimate = Estimate(works(plan, manifest))
        line = ProgressLine(estimate)
        try:
            for name in [step.name for step in plan.steps]:
                step = plan[name]
                code = run_step(step, manifest, line, interrupt, lock)
                if code == STOPPED:
                    line.close()
                    print(f"\nStopped in {name}. To go on:\n  {shlex.join(go_on)}", flush=True)
                    return STOPPED
                if plan.subject is None:  # the caption is there now, if there is one to be had
                    plan = make_plan(scene, until)
                    if plan.subject is None:
                        raise ValueError(
                            f"Neither the prompt {scene.prompt!r} nor a caption says who or what "
                            'moves. Pass --subject, such as --subject "panda".'
                        )
        finally:
            line.close()
            if manifest.steps:
                page = report.write(plan, manifest)
    print(f"Done: {plan.steps[-1].folder}; the report is {page}.")
    return 0


def works(plan: Plan, manifest: Manifest) -> list[Work]:
    return [
        Work(step.name, step.cost, step.steps)
        for step, state in pending(plan, manifest)
        if state != "done"
    ]


def run_step(
    step: Step, manifest: Manifest, line: ProgressLine, interrupt: Interrupt, lock: int
) -> int:
    """Runs a step if it isn't done; 0, or STOPPED after Ctrl-C.

    lock: the scene's, which the step's process holds as long as it runs.

    Raises:
        StepFailed: its process ended otherwise.
    """
    inputs = step.inputs()
    if inputs is None:
        missing = [str(path) for path in step.reads.values() if not path.is_file()]
        raise FileNotFoundError(f"{step.name} reads {', '.join(missing)}, which isn't there.")
    state = manifest.state(step.name, inputs, step.checkpoint)
    if state == "done":
        line.say(f"{step.name}: done before")
        return 0
    if interrupt.asked:
        return STOPPED
    again = state == "half"
    if not again:
        put_aside(step)
    manifest.begin(step.name, inputs, again)
    if step.copies is not None:
        target = ROOT / step.copies[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / step.copies[0], target)
    line.say(f"{step.name}: {'going on from its last checkpoint' if again else 'starts'}")
    log = manifest.folder / "logs" / f"{step.name}.log"
    last: list[str] = []
    line.estimate.start(step.name)

    def on_line(text: str) -> None:
        bar = read_bar(text)
        if bar is not None:
            line.estimate.report(*bar)
            return
        if not NOISE.search(text):
            last.append(text)
            line.say(f"  {text}")

    command = [sys.executable, *step.words(again)]
    outcome = process.run(
        command,
        ROOT,
        step.environment,
        log,
        interrupt,
        on_line,
        tick=line.refresh,
        holds=[lock],
    )
    line.estimate.finish()
    manifest.add(step.name, outcome.seconds, outcome.peak_memory)
    if outcome.code != 0 and interrupt.asked:
        return STOPPED
    if outcome.code != 0:
        raise StepFailed(failure(step, outcome.code, last, log))
    manifest.finish(step.name, step.outputs, steps=step.steps, command=step.shown(again))
    line.say(f"{step.name}: {duration(manifest.steps[step.name]['seconds'])}")
    return 0


def failure(step: Step, code: int, last: Sequence[str], log: Path) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        how += " (out of memory, perhaps: see --vram)"
    lines = "\n".join(f"  {text}" for text in last[-TAIL:] if text.strip())
    return f"{step.name} {how}. Its last lines:\n{lines}\nAll of them are in {log}."


def put_aside(step: Step) -> None:
    """Makes room for a step that starts anew: what it made before is kept in earlier/<step>-<n>."""
    folder = step.folder
    if not folder.exists():
        return
    if not any(path.exists() for path in step.outputs):
        shutil.rmtree(folder)  # a run that came to nothing
        return
    earlier = folder.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    n = 1 + sum(path.name.startswith(f"{folder.name}-") for path in earlier.iterdir())
    os.rename(folder, earlier / f"{folder.name}-{n}")
