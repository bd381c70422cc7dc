"""A stage: one row of the preset, trained by launch.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..draft import Draft
from ..machine import CPU
from ..manifest import model_hash
from ..overrides import stage_config, written
from ..places import MODELS, ROOT, located, shown
from ..presets import Stage
from ..task import Task

SCRIPT = "launch.py"
PLANNED = {  # keys of a config that the plan sets, and the option that a person has for it
    **dict.fromkeys(("name", "tag", "exp_root_dir", "use_timestamp", "timestamp"), "--out"),
    **dict.fromkeys(("exp_dir", "trial_name", "trial_dir", "checkpoint.dirpath"), "--out"),
    "n_gpus": "--gpu",
    # a stage has to train whole, and to be one that can go on
    **dict.fromkeys(("trainer.fast_dev_run", "trainer.max_time"), "stageN.trainer.max_steps"),
    "checkpoint.save_weights_only": "stageN.checkpoint.every_n_train_steps",
    **dict.fromkeys(("resume", "system.weights"), "--from"),
    "data.image.image_path": "IMAGE",
    "system.prompt_processor.prompt": "--prompt and --static-prompt",
    "system.prompt_processor_cn.prompt": "--refine-prompt",
    "system.prompt_processor_cn.token": "--refine-prompt",
    "system.prompt_processor_cn.learned_embeds_path": "--from token",
}
TESTS = "limit_test_batches"  # of the trainer: how much of the test video is rendered
LAUNCH_FILES = (  # that each launch of a stage writes, without a checkpoint worth nothing
    "cmd.txt",
    "configs/raw.yaml",
    "configs/parsed.yaml",
    "csv_logs/version_*/metrics.csv",
    "csv_logs/version_*/hparams.yaml",
    "tb_logs/version_*/events.out.tfevents.*",
    "tb_logs/version_*/hparams.yaml",
    "snapshot.ckpt",
)


def add_config(draft: Draft, stage: Stage) -> None:
    """Notes the words of a stage's command, its config with them, and what of them is --vram's.

    Raises:
        ValueError: an override that can't be read.
    """
    request, path = draft.request, ROOT / stage.config
    values: dict[str, Any] = {
        "exp_root_dir": shown(request.out),
        "name": request.name,
        "tag": stage.name,
        "use_timestamp": False,
        "data.image.image_path": shown(draft.cut_out),
        f"trainer.{TESTS}": 0,  # the result has the videos
        **{key: draft.prompts[name] for key, name in stage.prompts.items() if draft.prompts[name]},
    }
    if stage.starts_from:
        values["system.weights"] = shown(draft.checkpoint(stage.starts_from))
    if stage.token:
        values[stage.token] = shown(draft.learned_token)
    draft.memory[stage.name] = stage.memory_options(request.vram)
    values |= draft.memory[stage.name]
    if stage.steps or request.fast:
        trainer = stage_config(path, [written(*pair) for pair in values.items()])["trainer"]
        steps = stage.steps or trainer["max_steps"]
        if request.fast:
            steps = max(1, steps // stage.fast)
        values["trainer.max_steps"] = steps
        values["trainer.val_check_interval"] = min(steps, trainer["val_check_interval"])
    words = [written(key, value) for key, value in values.items()]
    words += [f"{key}={value}" for key, value in draft.overrides(stage.name).items()]
    try:
        draft.configs[stage.name] = stage_config(path, words)
    except ValueError as error:
        raise ValueError(f"{stage.name}: {error}") from error
    draft.words[stage.name] = words


def make(draft: Draft, stage: Stage) -> Task:
    """`add_config` comes first."""
    reads = {"cut-out": draft.cut_out}
    if stage.starts_from:
        reads["weights"] = draft.checkpoint(stage.starts_from)
    if stage.token:
        reads["token"] = draft.learned_token
    config, gpu = draft.configs[stage.name], draft.request.gpu
    trainer, checkpoint = config["trainer"], draft.checkpoint(stage.name)
    cards = [] if gpu in (None, CPU) else ["--gpu", gpu]
    words = ["--config", shown(ROOT / stage.config), "--train", *cards, *draft.words[stage.name]]
    return Task(
        name=stage.name,
        command=[SCRIPT, *words],
        folder=draft.folder(stage.name),
        settings=without_places(config, reads),
        reads=reads,
        outputs=[checkpoint, draft.config(stage.name)],
        cost=stage.cost,
        steps=trainer["max_steps"] * trainer.get("accumulate_grad_batches", 1),
        checkpoint=checkpoint,
        resume=resume_words(checkpoint),
        slight=LAUNCH_FILES,
    )


def resume_words(checkpoint: Path) -> list[str]:
    """What makes a stage go on from a checkpoint."""
    return [written("resume", shown(checkpoint))]


def without_places(config: Mapping[str, Any], reads: Mapping[str, Path]) -> dict[str, Any]:
    """A stage's config as far as it decides what comes out: where files lie and test videos are
    left out, the files that it reads go by their labels, and local models by what is in them."""
    labels = {shown(path): label for label, path in reads.items()}
    places = ("name", "tag", "exp_root_dir", "use_timestamp", "description")

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(k, v) for k, v in value.items() if k != TESTS}
        if key in MODELS and isinstance(value, str):
            return model_hash(located(value))
        return labels.get(value, value) if isinstance(value, str) else value

    return {k: plain(k, v) for k, v in config.items() if k not in places}
