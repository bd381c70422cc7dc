"""The plan: a scene's steps, each with its command line, what it reads and what it writes.

Every step is a command that works by itself, from the checkout's folder. `make_plan` looks at
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
from . import result
from .machine import CPU, variables
from .manifest import file_hash, model_hash, settings_hash
from .overrides import check_handover, check_stage, flags, stage_config, written
from .places import MODELS, ROOT, check_writable, located, models_of, shown
from .presets import (
    FAST,
    STAGES,
    Cost,
    Preset,
    memory_options,
    preset_named,
    token_memory_options,
)
from .scene import Scene
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
class Step:
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
    checkpoint: Path | None = None  # what a half-done step goes on from
    resume: list[str] = field(default_factory=list)  # words that make it go on
    slight: tuple[str, ...] = ()  # patterns of its files that are worth nothing by themselves
    environment: dict[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()  # folders and hub ids that it reads

    @cached_property
    def _settings_hash(self) -> str:
        return settings_hash(self.settings)

    def inputs(self) -> str | None:
        """Hash of all that decides about the step; None while a file that it reads is missing."""
        contents = {label: file_hash(path) for label, path in self.reads.items()}
        if None in contents.values():
            return None
        return settings_hash([self.name, self._settings_hash, contents])

    def words(self, again: bool = False) -> list[str]:
        """The command line; `again`: to go on where the step stopped."""
        return [*self.command, *(self.resume if again else [])]

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
    scene: Scene
    steps: list[Step]
    subject: Subject | None  # None: known once there is a caption
    prompts: dict[str, str]  # stage -> its prompt; also "refine", the personalised one
    memory: dict[str, dict[str, Any]]  # stage or token -> what --vram sets

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


def interpreter(folder: Path = ROOT) -> str:
    """`python` where that is the one that runs now, else its path, for commands run in `folder`."""
    found = shutil.which("python")
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    if same:
        return "python"
    return shown(Path(sys.executable)) if folder == ROOT else sys.executable


def make_plan(scene: Scene, until: str = "result", check: bool = False) -> Plan:
    """The steps of a scene up to `until`; the result is always that of the last stage before.

    `check` also looks whether everything reads the overrides, whether the image is one and whether
    its results can be written (which takes a moment).

    Raises:
        ValueError: an option that doesn't fit, an image that can't be used; OSError: no image, no
            model, no folder to write to.
    """
    preset = preset_named(scene.preset)
    subject = scene.who()
    prompts = make_prompts(scene, preset, subject or LATER)
    configs, memory = {}, {}
    if "train_batch_size" not in scene.overrides.get("token", {}):  # else it is the person's choice
        memory["token"] = token_memory_options(scene.vram, preset.token["train_batch_size"])
    for stage, path in zip(STAGES, preset.configs, strict=True):
        configs[stage], memory[stage] = stage_overrides(scene, preset, stage, path, prompts)
    resolved = {}
    for stage, path in zip(STAGES, preset.configs, strict=True):
        try:
            resolved[stage] = stage_config(ROOT / path, configs[stage])
        except ValueError as error:
            raise ValueError(f"{stage}: {error}") from error
    if check:
        check_writable(scene.folder)
        check_photo(scene.image)
        later = [cut_out(scene), learned_token(scene), *(checkpoint(scene, s) for s in STAGES)]
        for stage, path in zip(STAGES, preset.configs, strict=True):
            check_stage(stage, ROOT / path, configs[stage], map(shown, later))
        check_handover(resolved)
    if until not in (*STAGES, "result"):  # the result isn't planned, but what is said of it is read
        result_step(scene, preset, STAGES[-1])
    steps = [
        preprocess_step(scene, preset),
        token_step(scene, preset, resolved["stage3"], subject or LATER, memory.get("token", {})),
        *(
            stage_step(scene, preset, stage, path, configs[stage], resolved[stage])
            for stage, path in zip(STAGES, preset.configs, strict=True)
        ),
    ]
    names = [step.name for step in steps]
    if until in names:
        steps = steps[: names.index(until) + 1]
    last = steps[-1].name
    if last in STAGES:
        steps.append(result_step(scene, preset, last))
    for step in steps:
        step.environment = environment(scene, preset, step.name)
    return Plan(scene, steps, subject, prompts, {s: m for s, m in memory.items() if m})


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


def make_prompts(scene: Scene, preset: Preset, subject: Subject) -> dict[str, str]:
    """The prompts of all stages.

    Raises:
        ValueError: no prompt for stage 3 can be derived, or the one given lacks the token.
    """
    static = scene.static_prompt or preset.static_prompt.format(**subject._asdict())
    refine = scene.refine_prompt
    if refine is None:
        refine = TOKEN if subject is LATER else refined(scene.prompt, subject)
    if refine is None:
        raise ValueError(
            f"The prompt {scene.prompt!r} doesn't name the subject {subject.noun!r}, so it is not "
            f'clear where the learned token stands. Pass --refine-prompt, such as "a {TOKEN} is '
            f'dancing", or another --subject.'
        )
    if TOKEN not in refine:
        raise ValueError(
            f"--refine-prompt {refine!r} has no {TOKEN}, which stands for the learned token; such "
            f'as "a {TOKEN} is dancing".'
        )
    return {
        "stage1": static,
        "stage2": scene.prompt,
        "stage3": scene.prompt,
        "refine": refine,
        "video_negative": preset.video_negative.format(**subject._asdict()),
        "refine_negative": preset.refine_negative.format(prompt=scene.prompt),
    }


def cut_out(scene: Scene) -> Path:
    return scene.folder / "input" / "_rgba.png"


def learned_token(scene: Scene) -> Path:
    return scene.folder / "token" / "learned_embeds.bin"


def checkpoint(scene: Scene, stage: str) -> Path:
    return scene.folder / stage / "ckpts" / "last.ckpt"


def environment(scene: Scene, preset: Preset, name: str) -> dict[str, str]:
    """Variables that a step is given."""
    given = {"HF_HUB_OFFLINE": "1"} if preset.offline else {}
    # launch.py has --gpu, the other scripts don't
    return given | (variables(scene.gpu) if name not in STAGES or scene.gpu == CPU else {})


def preprocess_step(scene: Scene, preset: Preset) -> Step:
    options = {**preset.preprocess, **scene.overrides.get("preprocess", {})}
    if scene.needs_caption():
        options["need_caption"] = "true"
    folder = scene.folder / "input"
    photo = folder / f"photo{scene.image.suffix.lower()}"
    reads = {"image": scene.image}
    copies = [(scene.image, photo)]
    if str(options.get("use_existing_background", "")).lower() == "true":
        reads["cut-out by hand"] = by_hand = scene.image.parent / "_rgba.png"
        copies.append((by_hand, cut_out(scene)))
        if not by_hand.is_file():
            raise FileNotFoundError(
                f"preprocess.use_existing_background: there is no {by_hand}. Save the subject, cut "
                "out, under that name."
            )
    return Step(
        name="preprocess",
        command=[
            PREPROCESS_SCRIPT,
            *flags("preprocess", options, preprocess_parser(), shown(photo)),
        ],
        folder=folder,
        settings=options,
        reads=reads,
        outputs=[cut_out(scene)],
        cost=preset.costs["preprocess"],
        copies=tuple((Path(shown(source)), Path(shown(target))) for source, target in copies),
        slight=(photo.name,),
    )


def token_step(
    scene: Scene, preset: Preset, stage3: Mapping, subject: Subject, memory: Mapping[str, int]
) -> Step:
    options = {**preset.token, **memory}
    if scene.fast:
        options["max_train_steps"] = max(1, options["max_train_steps"] // FAST)
    model = stage3["system"]["guidance_cn"]["pretrained_model_name_or_path"]
    options = {
        "pretrained_model_name_or_path": model,
        "learnable_property": "object",
        "placeholder_token": TOKEN,
        "initializer_token": subject.noun,
        **options,
        **scene.overrides.get("token", {}),
    }
    folder = scene.folder / "token"
    paths = {"train_data_dir": shown(cut_out(scene)), "output_dir": shown(folder)}
    words = flags("token", {**options, **paths}, script_parser(TOKEN_SCRIPT))
    return Step(
        name="token",
        command=[TOKEN_SCRIPT, *words],
        folder=folder,
        settings={**options, "model": model_hash(located(model))},
        reads={"cut-out": cut_out(scene)},
        outputs=[learned_token(scene)],
        cost=preset.costs["token"],
        steps=int(options["max_train_steps"]),
        checkpoint=folder,
        resume=["--resume_from_checkpoint", "latest"],
        models=frozenset(model for _, model in models_of(options)),
        slight=("logs/*/events.out.tfevents.*", "logs/*/hparams.yml"),
    )


def stage_overrides(
    scene: Scene, preset: Preset, stage: str, path: str, prompts: Mapping[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """The words `key=value` of a stage's command, and those of them that are --vram's."""
    values: dict[str, Any] = {
        "exp_root_dir": shown(scene.out),
        "name": scene.name,
        "tag": stage,
        "use_timestamp": False,
        "data.image.image_path": shown(cut_out(scene)),
        "system.prompt_processor.prompt": prompts[stage],
    }
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
    if before is not None:
        values["system.weights"] = shown(checkpoint(scene, before))
        if prompts["video_negative"]:
            values["system.prompt_processor.negative_prompt"] = prompts["video_negative"]
    if stage == "stage3":
        values["system.prompt_processor_cn.prompt"] = prompts["refine"]
        if prompts["refine_negative"]:
            values["system.prompt_processor_cn.negative_prompt"] = prompts["refine_negative"]
        values["system.prompt_processor_cn.learned_embeds_path"] = shown(learned_token(scene))

    memory = memory_options(scene.vram, stage)
    values |= memory
    if scene.fast:
        plain = [written(key, value) for key, value in values.items()]
        trainer = stage_config(ROOT / path, plain)["trainer"]
        steps = max(1, trainer["max_steps"] // FAST)
        values["trainer.max_steps"] = steps
        values["trainer.val_check_interval"] = min(steps, trainer["val_check_interval"])
    given = [f"{k}={v}" for k, v in scene.overrides.get(stage, {}).items()]
    return [*(written(k, v) for k, v in values.items()), *given], memory


def stage_step(
    scene: Scene,
    preset: Preset,
    stage: str,
    path: str,
    overrides: list[str],
    config: dict[str, Any],
) -> Step:
    folder = scene.folder / stage
    reads = {"cut-out": cut_out(scene)}
    if stage != STAGES[0]:
        reads["weights"] = checkpoint(scene, STAGES[STAGES.index(stage) - 1])
    if stage == "stage3":
        reads["token"] = learned_token(scene)
    trainer = config["trainer"]
    gpu = [] if scene.gpu in (None, CPU) else ["--gpu", scene.gpu]
    return Step(
        name=stage,
        command=["launch.py", "--config", path, "--train", *gpu, *overrides],
        folder=folder,
        settings=without_places(config, reads),
        reads=reads,
        outputs=[checkpoint(scene, stage), folder / "configs" / "parsed.yaml"],
        cost=preset.costs[stage],
        steps=trainer["max_steps"] * trainer.get("accumulate_grad_batches", 1),
        checkpoint=checkpoint(scene, stage),
        resume=resume_words(checkpoint(scene, stage)),
        slight=LAUNCH_FILES,
    )


def resume_words(path: Path) -> list[str]:
    """What makes a stage go on from a checkpoint."""
    return [written("resume", shown(path))]


def result_step(scene: Scene, preset: Preset, stage: str) -> Step:
    options = {**preset.result, **scene.overrides.get("result", {})}
    folder = scene.folder / "result"
    paths = {
        "config": shown(scene.folder / stage / "configs" / "parsed.yaml"),
        "checkpoint": shown(checkpoint(scene, stage)),
        "out": shown(folder),
    }
    return Step(
        name="result",
        command=[RESULT_SCRIPT, *flags("result", {**paths, **options}, result.parser())],
        folder=folder,
        settings={**options, "stage": stage},
        reads={
            "config": scene.folder / stage / "configs" / "parsed.yaml",
            "checkpoint": checkpoint(scene, stage),
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
