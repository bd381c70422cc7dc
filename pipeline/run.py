"""Runs a scene's plan: skips what is done, goes on with what is half done, and says what it does.

Prints go through the progress line; everything that a task prints is in `<scene>/logs/<task>.log`.
"""

import contextlib
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..events import Event, Message, Progress
from ..files.json_files import read_json
from ..files.torch_files import check_zip
from ..files.whole import clear_parts
from ..pretrained.learned_tokens import read_learned_tokens
from . import process, report
from .earlier import put_aside
from .live import viewer
from .lock import Note, locked
from .machine import lacks
from .manifest import Manifest, State
from .places import ROOT, check_writable, workplace
from .plan import LEAVES, Plan, make_plan
from .presets import preset_of
from .process import STOPPED, Interrupt, Start
from .progress import Estimate, ProgressLine, Work, duration
from .request import FIELDS, Request
from .result_files import MESH
from .task import Task
from .tasks.stage import resume_words
from .wording import unknown_words

TAIL = 15  # lines of a failed task that are shown


class TaskFailed(RuntimeError):
    """A task's process ended with an error; the message shows what it said."""


class Hearing:
    """What a running task says: shown as it comes, and kept for the message if it fails."""

    def __init__(self, task: Task, line: ProgressLine) -> None:
        self.task, self.line = task, line
        self._last: deque[str] = deque(maxlen=TAIL)
        self._errors: list[str] = []

    def on_line(self, text: str) -> None:
        if text.strip():
            self._last.append(self.task.told(text))

    def on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.line.estimate.report(event)
        elif isinstance(event, Message):
            text = self.task.told(event.text)
            if event.level == "error":
                self._errors.append(text)
                return
            word = "" if event.level == "info" else f"{event.level}: "
            for part in f"{word}{text}".splitlines():
                self.line.say(f"  {part}")

    def kept(self) -> list[str]:
        """Its errors, or else its last lines."""
        return self._errors or list(self._last)


def pending(plan: Plan, manifest: Manifest) -> list[tuple[Task, State]]:
    """Each task's state, as far as it can be known: what follows a task that runs is `new`."""
    states: list[tuple[Task, State]] = []
    made: set[Path] = set()  # files that a run of the plan will write anew
    for task in plan.tasks:
        later = made.intersection(task.reads.values())
        state = "new" if later else manifest.state(task.name, task.inputs(), task.checkpoint)
        if state != "done":
            made.update(task.outputs)
        states.append((task, state))
    return states


def describe(plan: Plan, manifest: Manifest) -> str:
    """The plan as --dry-run prints it."""
    says = {"done": "done", "half": "goes on from its last checkpoint", "new": "runs"}
    request = plan.request
    head = f"# {request.folder}: preset {request.preset}, field {request.field}"
    lines = [head, *remarks(plan)]
    lines += [f"# the commands run in {workplace()}"] if Path.cwd() != workplace() else []
    states = pending(plan, manifest)
    lines += of_another_field(plan, states, manifest)
    lines += [f"# not here: {line}" for line in here(plan, states)]
    for task, state in states:
        lines += ["", f"# {task.name}: {says[state]}", task.shown(again=state == "half")]
    return "\n".join(lines)


def beginning(request: Request) -> Manifest:
    """The manifest as a run begins with it; nothing is written."""
    manifest = Manifest(request.folder)
    manifest.claim(request.prompt, request.image)
    for name in preset_of(request).after(request.start):
        manifest.records.pop(name, None)
    return manifest


def here(plan: Plan, states: Sequence[tuple[Task, State]]) -> list[str]:
    """What the tasks that are left need and this machine doesn't have.

    Raises:
        ValueError: a token that is done, but can't be read.
    """
    left = {task.name: task for task, state in states if state != "done"}
    if "token" not in left and any("token" in task.reads for task in left.values()):
        try:
            read_learned_tokens(plan["token"].outputs[0])
        except ValueError as error:
            raise ValueError(f"{error} (--from token learns it again)") from error
    needs = [name for name in left if name != "preprocess"]
    models = {model for task in left.values() for model in task.models}
    return lacks(plan.request, preset_of(plan.request), models) if needs else []


def check_here(plan: Plan) -> list[tuple[Task, State]]:
    """The tasks' states before a run.

    Raises:
        ValueError: something that they need isn't here; OSError: a folder of theirs is read-only.
    """
    states = pending(plan, beginning(plan.request))
    for folder in {task.folder for task, state in states if state != "done"}:
        check_writable(folder)
    if lacking := here(plan, states):
        raise ValueError(" ".join(lacking))
    return states


def remarks(plan: Plan) -> list[str]:
    """What a person should know before the plan runs."""
    request, lines = plan.request, []
    if plan.subject is None:
        lines.append(
            f"# who moves isn't clear from {request.prompt!r}: SUBJECT comes from the picture's "
            "caption, which is not there yet (--subject says it now)"
        )
    lines += [f"# {key}: {text!r}" for key, text in plan.prompts.items() if text]
    preset = preset_of(request)
    words = preset.words
    if words is not None and plan.subject is not None:
        line = unknown_words(request.preset, read_json(ROOT / words), *plan.prompts.values())
        lines += [f"# {line}"] if line else []
    if request.vram is not None and not plan.memory:
        lines.append(f"# --vram {request.vram:g}: no option is needed for that")
    for stage, options in plan.memory.items():
        options = " ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"# --vram {request.vram:g} sets in {stage}: {options}")
    if request.vram is not None and request.vram < preset.least_gb:
        lines.append(
            f"# --vram {request.vram:g} is too little for {request.preset}: with what it sets, "
            f"stage 2 alone took {preset.least_gb:g} GB. docs/priors.md has those that take less"
        )
    return lines


def of_another_field(
    plan: Plan, states: Sequence[tuple[Task, State]], manifest: Manifest
) -> list[str]:
    """A line if stages that will train anew are done, or half done, with another --field."""
    request = plan.request
    left = [task.name for task, state in states if state == "new" and task.name not in LEAVES]
    left = [name for name in left if name in manifest.records]
    if not left or not preset_of(request).grid:
        return []
    (field,) = set(FIELDS) - {request.field}
    try:
        there = pending(make_plan(replace(request, field=field)), manifest)
    except (ValueError, OSError):  # what is asked for doesn't fit that field
        return []
    made = [task.name for task, state in there if state != "new" and task.name in left]
    if not made:
        return []
    return [
        f"# {', '.join(made)}: trained with --field {field}, which takes them as they are. With "
        f"--field {request.field} they train anew; what they made is kept in earlier/"
    ]


def run_request(
    request: Request,
    go_on: Sequence[str],
    interrupt: Interrupt,
    with_viewer: bool = False,
    start: Start = process.execute,
) -> int:
    """Runs what is not done; returns the exit code.

    go_on: the command line that continues this run. with_viewer: shows the scene meanwhile. start:
    what makes the tasks' processes.
    """
    plan = make_plan(request, check=True)
    states = check_here(plan)
    beside = viewer(request.folder) if with_viewer else contextlib.nullcontext()
    with locked(request.folder, interrupt) as note, beside:
        clear_parts(request.folder)
        manifest = Manifest(request.folder)
        manifest.claim(request.prompt, request.image)
        manifest.save()
        manifest.forget(preset_of(request).after(request.start))
        for line in [*remarks(plan), *of_another_field(plan, states, manifest)]:
            print(line.removeprefix("# "), flush=True)
        estimate = Estimate(works(states))
        line = ProgressLine(estimate)
        try:
            for name in [task.name for task in plan.tasks]:
                task = plan[name]
                with naming(task):
                    code = run_task(task, manifest, line, interrupt, note, start)
                if code == STOPPED:
                    line.close()
                    print(f"\nStopped in {name}. To go on:\n  {shlex.join(go_on)}", flush=True)
                    return STOPPED
                if plan.subject is None:  # the caption is there now, if there is any
                    plan = make_plan(request)
                    if plan.subject is None:
                        raise ValueError(
                            f"Neither the prompt {request.prompt!r} nor a caption says who or what "
                            'moves. Pass --subject, such as --subject "panda".'
                        )
        finally:
            line.close()
            page = write_report(plan, manifest) if manifest.records else None
    mesh = plan.tasks[-1].folder / MESH
    there = {"the report is": page, "the mesh for other programs": mesh if mesh.is_file() else None}
    more = [f"{words} {path}" for words, path in there.items() if path]
    print(f"Done: {'; '.join([str(plan.tasks[-1].folder), *more])}.")
    return 0


@contextlib.contextmanager
def naming(task: Task) -> Iterator[None]:
    """A full disk and its like say which file; this adds in which task."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"{task.name}: {error}") from error


def write_report(plan: Plan, manifest: Manifest) -> Path | None:
    """The page's path. A report that can't be written is a line: it hides no error of a task's and
    fails no scene."""
    try:
        return report.write(plan, manifest)
    except Exception as error:
        print(f"The report could not be written: {error!r}.", file=sys.stderr, flush=True)
        return None


def works(states: Sequence[tuple[Task, State]]) -> list[Work]:
    return [Work(task.name, task.cost, task.steps) for task, state in states if state != "done"]


def run_task(
    task: Task,
    manifest: Manifest,
    line: ProgressLine,
    interrupt: Interrupt,
    note: Note,
    start: Start,
) -> int:
    """Runs a task if it isn't done; 0, or STOPPED after Ctrl-C.

    note: tells the scene's lock of the task's process.

    Raises:
        TaskFailed: its process ended otherwise; ValueError: it can't go on where it stopped.
    """
    inputs = task.inputs()
    if inputs is None:
        missing = [str(path) for path in task.reads.values() if not path.is_file()]
        raise FileNotFoundError(f"{task.name} reads {', '.join(missing)}, which isn't there.")
    state = manifest.state(task.name, inputs, task.checkpoint)
    if state == "done":
        line.say(f"{task.name}: done before")
        return 0
    if interrupt.asked:
        return STOPPED
    again = state == "half"
    task = begin_task(task, manifest, inputs, again, line)
    log = manifest.folder / "logs" / f"{task.name}.log"
    hearing = Hearing(task, line)
    line.estimate.start(task.name)

    command = [sys.executable, *task.words(again)]
    outcome = process.run(
        command,
        workplace(),
        task.environment,
        log,
        interrupt,
        hearing.on_line,
        tick=line.refresh,
        note=note,
        on_event=hearing.on_event,
        start=start,
    )
    line.estimate.finish()
    manifest.add(task.name, outcome.seconds, outcome.peak_memory)
    if outcome.code != 0 and interrupt.asked:
        return STOPPED
    if outcome.code != 0:
        raise TaskFailed(failure(task, outcome.code, hearing.kept(), log, again))
    manifest.finish(task.name, task.outputs, steps=task.steps, command=task.shown(again))
    line.say(f"{task.name}: {duration(manifest.records[task.name]['seconds'])}")
    return 0


def begin_task(
    task: Task, manifest: Manifest, inputs: str, again: bool, line: ProgressLine
) -> Task:
    """Puts a task's folder and the manifest as it needs them; the task with the words to run.

    again: it goes on where it stopped.
    """
    if again:
        task = go_on_from_sound(task, line)
    for path in manifest.changed(task.name, inputs):
        line.say(f"{task.name}: {path} isn't what it wrote any more, so it runs again")
    if not again and (kept := put_aside(task)) is not None:
        line.say(f"{task.name}: what it made before is kept in {kept}")
    manifest.begin(task.name, inputs, again)
    for source, target in task.copies:
        (workplace() / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workplace() / source, workplace() / target)
    line.say(f"{task.name}: {'going on from its last checkpoint' if again else 'starts'}")
    return task


def go_on_from_sound(task: Task, line: ProgressLine) -> Task:
    """A half-done stage goes on from the newest checkpoint that isn't damaged. (The token's script
    looks for itself.)

    Raises:
        ValueError: they all are.
    """
    last = task.checkpoint
    if last is None or not last.is_file():
        return task
    older = set(last.parent.glob("[!.]*.ckpt")) - {last}
    newest_first = sorted(older, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [last, *newest_first]:
        if not is_sound(path):
            line.say(f"{task.name}: {path} is damaged or cut off")
            continue
        return task if path == last else replace(task, resume=resume_words(path))
    raise ValueError(
        f"{task.name} was half done, but its checkpoint {last} is damaged and there is no "
        f"older one. --from {task.name} starts it again; what is there now is kept."
    )


def is_sound(checkpoint: Path) -> bool:
    """Whether it is the zip that was written, by its records' checksums."""
    with checkpoint.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        check_zip(checkpoint)
    except ValueError:
        return False
    return True


def failure(task: Task, code: int, said: Sequence[str], log: Path, again: bool) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        how += " (out of memory, perhaps: see --vram)"
    lines = "\n".join(f"  {text}" for text in said)
    text = f"{task.name} {how}. What it said:\n{lines}\nAll of it is in {log}."
    if again:
        text += f" It was going on where it had stopped; --from {task.name} starts it again."
    return text
