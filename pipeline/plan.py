"""The plan: a scene's tasks, each with its command line, what it reads and what it writes.

Every task is a command that works by itself, from the checkout's folder. `make_plan` looks at
nothing but the scene, the configs and a caption, so that --dry-run prints what a run would do.
"""

import argparse
import functools
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from ..preprocess.command import parser as preprocess_parser
from ..preprocess.cut_out import check_photo
from ..textual_inversion.parser import parser as token_parser
from . import result
from .machine import CPU, variables
from .manifest import file_hash, model_hash, settings_hash
from .overrides import check_handover, check_stage, flags, stage_config, written
from .places import MODELS, ROOT, check_writable, located, model_shown, models_of, shown
from .presets import (
    FAST,
    STAGES,
    Cost,
    Preset,
    memory_options,
    preset_named,
    token_memory_options,
)
from .request import Request
from .wording import TOKEN, Subject, refined

PREPROCESS_SCRIPT = "image_preprocess.py"
TOKEN_SCRIPT = "textual-inversion/textual_inversion.py"
RESULT_SCRIPT = "pipeline/result.py"
LAUNCH_FILES = (  # that each launch of a stage writes, without a checkpoint worth nothing
    "cmd.txt",
    "configs/raw.yaml",
    "configs/parsed.yaml",
    "csv_logs/version_*/metrics.csv",
    "csv_logs/version_*/hparams.yaml",
    "tb_logs/version_*/events.out.tfevents.*",
    "tb_logs/version_*/hparams.yaml",
)
LATER = Subject("SUBJECT", "a SUBJECT")  # stands in a plan until the caption is there


@dataclass
class Task:
    """One command; `settings` and the contents of `reads` decide whether it has to run."""

    name: str
    command: list[str]  # after the interpreter
    folder: Path  # everything that it writes is in here
    settings: dict[str, Any]
    reads: dict[str, Path]
    outputs: list[Path]
    cost: Cost
    steps: int | None = None  # training steps; None: it doesn't train
    copies: tuple[tuple[Path, Path], ...] = ()  # files that are copied first: from, to
    checkpoint: Path | None = None  # what a half-done task goes on from
    resume: list[str] = field(default_factory=list)  # words that make it go on
    slight: tuple[str, ...] = ()  # patterns of its files that are worth nothing by themselves
    environment: dict[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()  # folders and hub ids that it reads

    @cached_property
    def _settings_hash(self) -> str:
        return settings_hash(self.settings)

    def inputs(self) -> str | None:
        """Hash of all that decides about the task; None while a file that it reads is missing."""
        contents = {label: file_hash(path) for label, path in self.reads.items()}
        if None in contents.values():
            return None
        return settings_hash([self.name, self._settings_hash, contents])

    def words(self, again: bool = False) -> list[str]:
        """The command line; `again`: to go on where the task stopped."""
        script, *rest = self.command
        return [shown(ROOT / script), *rest, *(self.resume if again else [])]

    def told(self, text: str) -> str:
        """What the command says, with the person's files for the copies that it was given."""
        for source, target in self.copies:
            text = text.replace(str(target), str(source))
        return text

    def shown(self, again: bool = False) -> str:
        """As it would be typed, with the copy before it."""
        variables = "".join(f"{k}={shlex.quote(v)} " for k, v in self.environment.items())
        line = f"{variables}{shlex.join([interpreter(), *self.words(again)])}"
        copied = [shlex.join(["cp", str(source), str(target)]) for source, target in self.copies]
        if copied:
            folder = shlex.quote(str(self.copies[0][1].parent))
            line = f"{' && '.join([f'mkdir -p {folder}', *copied])}\n{line}"
        return line


@dataclass
class Plan:
    request: Request
    tasks: list[Task]
    subject: Subject | None  # None: known once there is a caption
    prompts: dict[str, str]  # stage -> its prompt; also "refine", the personalised one
    memory: dict[str, dict[str, Any]]  # stage or token -> what --vram sets

    def __getitem__(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)


def interpreter(folder: Path = ROOT) -> str:
    """`python` where that is the one that runs now, else its path, for commands run in `folder`."""
    found = shutil.which("python")
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    if same:
        return "python"
    return shown(Path(sys.executable)) if folder == ROOT else sys.executable


def make_plan(request: Request, until: str = "result", check: bool = False) -> Plan:
    """The tasks of a scene up to `until`; the result is always that of the last stage before.

    `check` also looks whether everything reads the overrides, whether the image is one and whether
    its results can be written (which takes a moment).

    Raises:
        ValueError: an option that doesn't fit, an image that can't be used; OSError: no image, no
            model, no folder to write to.
    """
    preset = preset_named(request.preset)
    subject = request.who()
    prompts = make_prompts(request, preset, subject or LATER)
    configs, memory = {}, {}
    if "train_batch_size" not in request.overrides.get("token", {}):  # else it's the person's
        memory["token"] = token_memory_options(request.vram, preset.token["train_batch_size"])
    for stage, path in zip(STAGES, preset.configs, strict=True):
        configs[stage], memory[stage] = stage_overrides(request, preset, stage, path, prompts)
    resolved = {}
    for stage, path in zip(STAGES, preset.configs, strict=True):
        try:
            resolved[stage] = stage_config(ROOT / path, configs[stage])
        except ValueError as error:
            raise ValueError(f"{stage}: {error}") from error
    if check:
        check_writable(request.folder)
        check_photo(request.image)
        later = [
            cut_out(request),
            learned_token(request),
            *(checkpoint(request, s) for s in STAGES),
        ]
        for stage, path in zip(STAGES, preset.configs, strict=True):
            check_stage(stage, ROOT / path, configs[stage], map(shown, later))
        check_handover(resolved)
    if until not in (*STAGES, "result"):  # the result isn't planned, but what is said of it is read
        result_task(request, preset, STAGES[-1])
    tasks = [
        preprocess_task(request, preset),
        token_task(request, preset, resolved["stage3"], subject or LATER, memory.get("token", {})),
        *(
            stage_task(request, preset, stage, path, configs[stage], resolved[stage])
            for stage, path in zip(STAGES, preset.configs, strict=True)
        ),
    ]
    names = [task.name for task in tasks]
    if until in names:
        tasks = tasks[: names.index(until) + 1]
    last = tasks[-1].name
    if last in STAGES:
        tasks.append(result_task(request, preset, last))
    for task in tasks:
        task.environment = environment(request, preset, task.name)
    return Plan(request, tasks, subject, prompts, {s: m for s, m in memory.items() if m})


@functools.cache
def script(path: str) -> ModuleType:
    """A script of this checkout as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def script_parser(path: str) -> argparse.ArgumentParser:
    """... and its argument parser."""
    return script(path).parser()


def make_prompts(request: Request, preset: Preset, subject: Subject) -> dict[str, str]:
    """The prompts of all stages.

    Raises:
        ValueError: no prompt for stage 3 can be derived, or the one given lacks the token.
    """
    static = request.static_prompt or preset.static_prompt.format(**subject._asdict())
    refine = request.refine_prompt
    if refine is None:
        refine = TOKEN if subject is LATER else refined(request.prompt, subject)
    if refine is None:
        raise ValueError(
            f"The prompt {request.prompt!r} doesn't name the subject {subject.noun!r}, so it is "
            f'not clear where the learned token stands. Pass --refine-prompt, such as "a {TOKEN} '
            f'is dancing", or another --subject.'
        )
    if TOKEN not in refine:
        raise ValueError(
            f"--refine-prompt {refine!r} has no {TOKEN}, which stands for the learned token; such "
            f'as "a {TOKEN} is dancing".'
        )
    return {
        "stage1": static,
        "stage2": request.prompt,
        "stage3": request.prompt,
        "refine": refine,
        "video_negative": preset.video_negative.format(**subject._asdict()),
        "refine_negative": preset.refine_negative.format(prompt=request.prompt),
    }


def cut_out(request: Request) -> Path:
    return request.folder / "input" / "_rgba.png"


def learned_token(request: Request) -> Path:
    return request.folder / "token" / "learned_embeds.bin"


def checkpoint(request: Request, stage: str) -> Path:
    return request.folder / stage / "ckpts" / "last.ckpt"


def environment(request: Request, preset: Preset, name: str) -> dict[str, str]:
    """Variables that a task is given."""
    given = {"HF_HUB_OFFLINE": "1"} if preset.offline else {}
    # launch.py has --gpu, the other scripts don't
    return given | (variables(request.gpu) if name not in STAGES or request.gpu == CPU else {})


def preprocess_task(request: Request, preset: Preset) -> Task:
    options = {**preset.preprocess, **request.overrides.get("preprocess", {})}
    if request.needs_caption():
        options["need_caption"] = "true"
    folder = request.folder / "input"
    photo = folder / f"photo{request.image.suffix.lower()}"
    reads = {"image": request.image}
    copies = [(request.image, photo)]
    if str(options.get("use_existing_background", "")).lower() == "true":
        reads["cut-out by hand"] = by_hand = request.image.parent / "_rgba.png"
        copies.append((by_hand, cut_out(request)))
        if not by_hand.is_file():
            raise FileNotFoundError(
                f"preprocess.use_existing_background: there is no {by_hand}. Save the subject, cut "
                "out, under that name."
            )
    return Task(
        name="preprocess",
        command=[
            PREPROCESS_SCRIPT,
            *flags("preprocess", options, preprocess_parser(), shown(photo)),
        ],
        folder=folder,
        settings=options,
        reads=reads,
        outputs=[cut_out(request)],
        cost=preset.costs["preprocess"],
        copies=tuple((Path(shown(source)), Path(shown(target))) for source, target in copies),
        slight=(photo.name,),
    )


def token_task(
    request: Request, preset: Preset, stage3: Mapping, subject: Subject, memory: Mapping[str, int]
) -> Task:
    options = {**preset.token, **memory}
    if request.fast:
        options["max_train_steps"] = max(1, options["max_train_steps"] // FAST)
    model = stage3["system"]["guidance_cn"]["pretrained_model_name_or_path"]
    options = {
        "pretrained_model_name_or_path": model_shown(model),
        "learnable_property": "object",
        "placeholder_token": TOKEN,
        "initializer_token": subject.noun,
        **options,
        **request.overrides.get("token", {}),
    }
    folder = request.folder / "token"
    paths = {"train_data_dir": shown(cut_out(request)), "output_dir": shown(folder)}
    words = flags("token", {**options, **paths}, token_parser())
    return Task(
        name="token",
        command=[TOKEN_SCRIPT, *words],
        folder=folder,
        settings={**options, "model": model_hash(located(model))},
        reads={"cut-out": cut_out(request)},
        outputs=[learned_token(request)],
        cost=preset.costs["token"],
        steps=int(options["max_train_steps"]),
        checkpoint=folder,
        resume=["--resume_from_checkpoint", "latest"],
        models=frozenset(model for _, model in models_of(options)),
        slight=("logs/*/events.out.tfevents.*", "logs/*/hparams.yml"),
    )


def stage_overrides(
    request: Request, preset: Preset, stage: str, path: str, prompts: Mapping[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """The words `key=value` of a stage's command, and those of them that are --vram's."""
    values: dict[str, Any] = {
        "exp_root_dir": shown(request.out),
        "name": request.name,
        "tag": stage,
        "use_timestamp": False,
        "data.image.image_path": shown(cut_out(request)),
        "system.prompt_processor.prompt": prompts[stage],
    }
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
    if before is not None:
        values["system.weights"] = shown(checkpoint(request, before))
        if prompts["video_negative"]:
            values["system.prompt_processor.negative_prompt"] = prompts["video_negative"]
    if stage == "stage3":
        values["system.prompt_processor_cn.prompt"] = prompts["refine"]
        if prompts["refine_negative"]:
            values["system.prompt_processor_cn.negative_prompt"] = prompts["refine_negative"]
        values["system.prompt_processor_cn.learned_embeds_path"] = shown(learned_token(request))

    memory = memory_options(request.vram, stage)
    values |= memory
    if request.fast:
        plain = [written(key, value) for key, value in values.items()]
        trainer = stage_config(ROOT / path, plain)["trainer"]
        steps = max(1, trainer["max_steps"] // FAST)
        values["trainer.max_steps"] = steps
        values["trainer.val_check_interval"] = min(steps, trainer["val_check_interval"])
    given = [f"{k}={v}" for k, v in request.overrides.get(stage, {}).items()]
    return [*(written(k, v) for k, v in values.items()), *given], memory


def stage_task(
    request: Request,
    preset: Preset,
    stage: str,
    path: str,
    overrides: list[str],
    config: dict[str, Any],
) -> Task:
    folder = request.folder / stage
    reads = {"cut-out": cut_out(request)}
    if stage != STAGES[0]:
        reads["weights"] = checkpoint(request, STAGES[STAGES.index(stage) - 1])
    if stage == "stage3":
        reads["token"] = learned_token(request)
    trainer = config["trainer"]
    gpu = [] if request.gpu in (None, CPU) else ["--gpu", request.gpu]
    return Task(
        name=stage,
        command=["launch.py", "--config", shown(ROOT / path), "--train", *gpu, *overrides],
        folder=folder,
        settings=without_places(config, reads),
        reads=reads,
        outputs=[checkpoint(request, stage), folder / "configs" / "parsed.yaml"],
        cost=preset.costs[stage],
        steps=trainer["max_steps"] * trainer.get("accumulate_grad_batches", 1),
        checkpoint=checkpoint(request, stage),
        resume=resume_words(checkpoint(request, stage)),
        slight=LAUNCH_FILES,
    )


def resume_words(path: Path) -> list[str]:
    """What makes a stage go on from a checkpoint."""
    return [written("resume", shown(path))]


def result_task(request: Request, preset: Preset, stage: str) -> Task:
    options = {**preset.result, **request.overrides.get("result", {})}
    folder = request.folder / "result"
    paths = {
        "config": shown(request.folder / stage / "configs" / "parsed.yaml"),
        "checkpoint": shown(checkpoint(request, stage)),
        "out": shown(folder),
    }
    return Task(
        name="result",
        command=[RESULT_SCRIPT, *flags("result", {**paths, **options}, result.parser())],
        folder=folder,
        settings={**options, "stage": stage},
        reads={
            "config": request.folder / stage / "configs" / "parsed.yaml",
            "checkpoint": checkpoint(request, stage),
        },
        outputs=[folder / name for name in result.file_names(static=stage == STAGES[0])],
        cost=preset.costs["result"],
        slight=result.REPORT,
    )


def without_places(config: Mapping[str, Any], reads: Mapping[str, Path]) -> dict[str, Any]:
    """A stage's config as far as it decides what comes out: where files lie is left out, the files
    that it reads go by their labels, and local models by what is in them."""
    labels = {shown(path): label for label, path in reads.items()}
    places = ("name", "tag", "exp_root_dir", "use_timestamp", "description")

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(k, v) for k, v in value.items()}
        if key in MODELS and isinstance(value, str):
            return model_hash(located(value))
        return labels.get(value, value) if isinstance(value, str) else value

    return {k: plain(k, v) for k, v in config.items() if k not in places}
