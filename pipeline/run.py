"""Runs a scene's plan: skips what is done, goes on with what is half done, and says what it does.

Prints go through the progress line; everything that a step prints is in `<scene>/logs/<step>.log`.
"""

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..files.torch_files import check_zip
from ..files.whole import clear_parts
from ..pretrained.learned_tokens import read_learned_tokens
from . import process, report
from .earlier import put_aside
from .lock import Note, locked
from .machine import lacks
from .manifest import Manifest, State
from .plan import ROOT, Plan, Step, make_plan, resume_words
from .presets import STEPS, preset_named
from .process import STOPPED, Interrupt
from .progress import Estimate, ProgressLine, Work, duration, read_bar
from .scene import Scene
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
    states = pending(plan, manifest)
    lines += [f"# not here: {line}" for line in here(plan, states)]
    for step, state in states:
        lines += ["", f"# {step.name}: {says[state]}", step.shown(again=state == "half")]
    return "\n".join(lines)


def beginning(scene: Scene, start: str | None) -> Manifest:
    """The manifest as a run from the step `start` begins with it; nothing is written."""
    manifest = Manifest(scene.folder)
    manifest.claim(scene.prompt, scene.image)
    for name in STEPS[STEPS.index(start) :] if start is not None else ():
        manifest.steps.pop(name, None)
    return manifest


def here(plan: Plan, states: Sequence[tuple[Step, State]]) -> list[str]:
    """What the steps that are left need and this machine doesn't have.

    Raises:
        ValueError: a token that is done, but can't be read.
    """
    left = {step.name: step for step, state in states if state != "done"}
    if "token" not in left and "stage3" in left:
        try:
            read_learned_tokens(plan["token"].outputs[0])
        except ValueError as error:
            raise ValueError(f"{error} (--from token learns it again)") from error
    needs = [name for name in left if name != "preprocess"]
    models = {model for step in left.values() for model in step.models}
    return lacks(plan.scene, preset_named(plan.scene.preset), models) if needs else []


def check_here(plan: Plan, start: str | None) -> list[tuple[Step, State]]:
    """The steps' states before a run from the step `start`.

    Raises:
        ValueError: something that they need isn't here.
    """
    states = pending(plan, beginning(plan.scene, start))
    if lacking := here(plan, states):
        raise ValueError(" ".join(lacking))
    return states


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


def run_scene(
    scene: Scene, start: str | None, until: str, go_on: Sequence[str], interrupt: Interrupt
) -> int:
    """Runs what is not done; returns the exit code.

    start: forces this step and those after it; go_on: the command line that continues this run.
    """
    plan = make_plan(scene, until, check=True)
    states = check_here(plan, start)
    with locked(scene.folder, interrupt) as note:
        clear_parts(scene.folder)
        manifest = Manifest(scene.folder)
        manifest.claim(scene.prompt, scene.image)
        manifest.save()
        if start is not None:
            manifest.forget(STEPS[STEPS.index(start) :])
        for line in remarks(plan):
            print(line.removeprefix("# "), flush=True)
        estimate = Estimate(works(states))
        line = ProgressLine(estimate)
        try:
            for name in [step.name for step in plan.steps]:
                step = plan[name]
                with naming(step):
                    code = run_step(step, manifest, line, interrupt, note)
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
            page = write_report(plan, manifest) if manifest.steps else None
    print(f"Done: {plan.steps[-1].folder}" + (f"; the report is {page}." if page else "."))
    return 0


@contextlib.contextmanager
def naming(step: Step) -> Iterator[None]:
    """A full disk and its like say which file; this adds in which step."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"{step.name}: {error}") from error


def write_report(plan: Plan, manifest: Manifest) -> Path | None:
    """The page's path. A report that can't be written is a line: it hides no error of a step's and
    fails no scene."""
    try:
        return report.write(plan, manifest)
    except Exception as error:
        print(f"The report could not be written: {error!r}.", file=sys.stderr, flush=True)
        return None


def works(states: Sequence[tuple[Step, State]]) -> list[Work]:
    return [Work(step.name, step.cost, step.steps) for step, state in states if state != "done"]


def run_step(
    step: Step, manifest: Manifest, line: ProgressLine, interrupt: Interrupt, note: Note
) -> int:
    """Runs a step if it isn't done; 0, or STOPPED after Ctrl-C.

    note: tells the scene's lock of the step's process.

    Raises:
        StepFailed: its process ended otherwise; ValueError: it can't go on where it stopped.
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
    if again:
        step = go_on_from_sound(step, line)
    for path in manifest.changed(step.name, inputs):
        line.say(f"{step.name}: {path} isn't what it wrote any more, so it runs again")
    if not again and (kept := put_aside(step)) is not None:
        line.say(f"{step.name}: what it made before is kept in {kept}")
    manifest.begin(step.name, inputs, again)
    for source, target in step.copies:
        (ROOT / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, ROOT / target)
    line.say(f"{step.name}: {'going on from its last checkpoint' if again else 'starts'}")
    log = manifest.folder / "logs" / f"{step.name}.log"
    last: list[str] = []
    line.estimate.start(step.name)

    def on_line(text: str) -> None:
        text = step.told(text)
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
        note=note,
    )
    line.estimate.finish()
    manifest.add(step.name, outcome.seconds, outcome.peak_memory)
    if outcome.code != 0 and interrupt.asked:
        return STOPPED
    if outcome.code != 0:
        raise StepFailed(failure(step, outcome.code, last, log, again))
    manifest.finish(step.name, step.outputs, steps=step.steps, command=step.shown(again))
    line.say(f"{step.name}: {duration(manifest.steps[step.name]['seconds'])}")
    return 0


def go_on_from_sound(step: Step, line: ProgressLine) -> Step:
    """A half-done stage goes on from the newest checkpoint that isn't damaged. (The token's script
    looks for itself.)

    Raises:
        ValueError: they all are.
    """
    if not step.checkpoint.is_file():
        return step
    older = set(step.checkpoint.parent.glob("[!.]*.ckpt")) - {step.checkpoint}
    newest_first = sorted(older, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [step.checkpoint, *newest_first]:
        if not is_sound(path):
            line.say(f"{step.name}: {path} is damaged or cut off")
            continue
        return step if path == step.checkpoint else replace(step, resume=resume_words(path))
    raise ValueError(
        f"{step.name} was half done, but its checkpoint {step.checkpoint} is damaged and there is "
        f"no older one. --from {step.name} starts it again; what is there now is kept."
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


def failure(step: Step, code: int, last: Sequence[str], log: Path, again: bool) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        how += " (out of memory, perhaps: see --vram)"
    lines = "\n".join(f"  {text}" for text in last[-TAIL:] if text.strip())
    text = f"{step.name} {how}. Its last lines:\n{lines}\nAll of them are in {log}."
    if again:
        text += f" It was going on where it had stopped; --from {step.name} starts it again."
    return text
