"""The plan: a scene's tasks, each with its command line, what it reads and what it writes.

`make_plan` looks at nothing but the request, the configs and a caption, so that --dry-run prints
what a run would do.
"""

from dataclasses import dataclass
from typing import Any

from ..preprocess.cut_out import check_photo
from .draft import Draft
from .machine import CPU, variables
from .overrides import check_handover, check_stage
from .places import ROOT, check_writable, shown
from .presets import AFTER, Preset, check_name, preset_of, token_memory_options
from .prompts import by_stage, make_prompts
from .request import FIELDS, GRID, OFFLINE, Request
from .subject import LATER, who
from .task import Task
from .tasks import assets, preprocess, result, stage, token
from .wording import Subject

LEAVES = {leaf.NAME: leaf for leaf in (preprocess, token, result, assets)}  # the others are stages


@dataclass
class Plan:
    request: Request
    tasks: list[Task]
    subject: Subject | None  # None: known once there is a caption
    prompts: dict[str, str]  # stage -> its prompt; also "refine", the personalised one
    memory: dict[str, dict[str, Any]]  # stage or token -> what --vram sets

    def __getitem__(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)


def make_plan(request: Request, check: bool = False) -> Plan:
    """The tasks of a request; the result is always that of the last stage among them.

    `check` also looks whether everything reads the overrides, whether the image is one and whether
    its results can be written (which takes a moment).

    Raises:
        ValueError: an option that doesn't fit, an image that can't be used; OSError: no image, no
            model, no folder to write to.
    """
    preset = preset_of(request)
    check_tasks(request, preset)
    names, subject = wanted(request, preset), who(request)
    prompts = make_prompts(request, preset, subject or LATER)
    stages = [row.name for row in preset.stages]
    last = [name for name in stages if name in names] or stages
    draft = Draft(request, preset, subject or LATER, prompts, last[-1])
    for row in preset.stages:
        stage.add_config(draft, row)
    if "train_batch_size" not in draft.overrides("token"):  # else it is the person's choice
        batch = preset.flags.get("token", {}).get("train_batch_size", 0)
        draft.memory["token"] = token_memory_options(request.vram, batch)
    if check:
        check_draft(draft)
    rows = {row.name: row for row in preset.stages}
    # those that aren't wanted too: what is said of them is read
    tasks = [
        stage.make(draft, rows[name]) if name in rows else LEAVES[name].make(draft)
        for name in preset.tasks
    ]
    for task in tasks:
        task.environment = environment(draft, task.name)
    return Plan(
        request,
        [task for task in tasks if task.name in names],
        subject,
        by_stage(prompts, preset),
        {name: draft.memory[name] for name in preset.tasks if draft.memory.get(name)},
    )


def check_tasks(request: Request, preset: Preset) -> None:
    """A ValueError for a task that isn't one, or for an override of what the plan itself sets."""
    for flag, name in {"--from": request.start, "--until": request.until}.items():
        if name is not None:
            check_name(f"{flag} {name}", name, preset.tasks)
    if request.start is not None and request.start not in wanted(request, preset):
        raise ValueError(f"--from {request.start} is after --until {request.until}.")
    if request.loop and request.field == GRID:
        raise ValueError(
            f"--loop: with --field {GRID} each moment is painted anew, and the last one can't be "
            f"led back to the first. --field {FIELDS[0]} can."
        )
    for task, given in request.overrides.items():
        for key, value in given.items():
            word = f"{task}.{key}={value}"
            check_name(word, task, preset.tasks)
            planned = LEAVES.get(task, stage).PLANNED
            if key in planned:
                raise ValueError(
                    f"{word}: animate.py sets {key} itself; {planned[key]} is for that."
                )


def wanted(request: Request, preset: Preset) -> tuple[str, ...]:
    """The names of a request's tasks: all up to --until, and a stage's own result."""
    names, until = preset.tasks, request.until
    if until is None:
        return names
    names = names[: names.index(until) + 1]
    return (*names, *AFTER) if until in {row.name for row in preset.stages} else names


def check_draft(draft: Draft) -> None:
    """What takes a moment: whether files can be written and read, and whether stages fit."""
    check_writable(draft.request.folder)
    check_photo(draft.request.image)
    later = [draft.cut_out, draft.learned_token]
    later += [draft.checkpoint(row.name) for row in draft.preset.stages]
    for row in draft.preset.stages:
        check_stage(row.name, ROOT / row.config, draft.words[row.name], map(shown, later))
    check_handover(draft.configs)
    assets.check(draft)


def environment(draft: Draft, name: str) -> dict[str, str]:
    """Variables that a task is given."""
    given = {"HF_HUB_OFFLINE": "1"} if draft.request.preset in OFFLINE else {}
    gpu = draft.request.gpu
    # launch.py has --gpu, the other scripts don't
    return given | (variables(gpu) if name in LEAVES or gpu == CPU else {})
