"""Overrides: `stage2.trainer.max_steps=100` for a stage's config, `token.max_train_steps=50` for a
flag of another step's script. What nothing would read is an error before anything runs."""

import argparse
import contextlib
import copy
import difflib
import functools
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import threestudio
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from threestudio.launch import trainer_options
from threestudio.utils.config import parse_overrides, parse_structured

from ..data.config import parse_data_config
from ..system.animate124 import check_weights
from .presets import STAGES, STEPS

OVERRIDE = re.compile(r"(\w+)\.([\w.-]+)=(.*)", re.DOTALL)
# what the plan itself decides, and the option that a person has for it
PLANNED = {
    **dict.fromkeys(("name", "tag", "exp_root_dir", "use_timestamp", "timestamp"), "--out"),
    **dict.fromkeys(("resume", "system.weights"), "--from"),
    "data.image.image_path": "IMAGE",
    "system.prompt_processor.prompt": "--prompt and --static-prompt",
    "system.prompt_processor_cn.prompt": "--refine-prompt",
    "system.prompt_processor_cn.learned_embeds_path": "--from token",
}
SECTIONS = ("geometry", "material", "background", "renderer", "exporter")
PRIORS = ("guidance", "guidance_3d", "guidance_cn", "prompt_processor", "prompt_processor_cn")


def is_override(word: str) -> bool:
    """Whether a word of the command line is meant as one, and not as a path."""
    match = OVERRIDE.fullmatch(word)
    return match is not None and not Path(word).exists()


def by_step(words: Iterable[str]) -> dict[str, dict[str, str]]:
    """`stage2.a.b=1` -> {"stage2": {"a.b": "1"}}.

    Raises:
        ValueError: a step that isn't one, or a key that the plan sets itself.
    """
    found: dict[str, dict[str, str]] = {}
    for word in words:
        step, key, value = OVERRIDE.fullmatch(word).groups()
        if step not in STEPS:
            near = difflib.get_close_matches(step, STEPS, n=1)
            hint = f" Did you mean {near[0]}.{key}?" if near else ""
            raise ValueError(f"{word}: no step is called {step!r}; {', '.join(STEPS)} are.{hint}")
        if step in STAGES and key in PLANNED:
            raise ValueError(f"{word}: animate.py sets {key} itself; {PLANNED[key]} is for that.")
        found.setdefault(step, {})[key] = value
    return found


def written(key: str, value: Any) -> str:
    """`key=value` such that launch.py reads this value; text stays readable where it can."""
    if not isinstance(value, (str, Path)):
        return f"{key}={json.dumps(value)}"
    text = str(value)
    try:
        as_it_is = parse_overrides([f"{key}={text}"]) == [(key, text)]
    except ValueError:  # it looks like the start of a list or of quoted text
        as_it_is = False
    return f"{key}={text if as_it_is else json.dumps(text, ensure_ascii=False)}"


@functools.cache
def _as_written(path: Path) -> DictConfig:
    return OmegaConf.load(path)


def stage_config(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """A stage's config with overrides `key=value`, everything that refers to others resolved."""
    cfg = copy.deepcopy(_as_written(path))
    for key, value in parse_overrides(list(overrides)):
        OmegaConf.update(cfg, key, value, merge=True)
    return OmegaConf.to_container(cfg, resolve=True)


def check_stage(step: str, config: Mapping[str, Any]) -> None:
    """A ValueError, with the step's name, for a key of the config that nothing would read."""
    cfg = OmegaConf.create({**config, "trainer": dict(config["trainer"])})
    try:
        parse_data_config(cfg.data)
        system = cfg.system
        parse_structured(threestudio.find(cfg.system_type).Config, system)
        for name in (*SECTIONS, *PRIORS):
            if kind := system.get(f"{name}_type"):
                parse_structured(threestudio.find(kind).Config, system.get(name, {}))
        check_weights(system.loss)
        with contextlib.redirect_stdout(io.StringIO()):  # what suits this machine is said later
            trainer_options(config["trainer"], n_gpus=0)
    except (ValueError, KeyError, OmegaConfBaseException) as error:
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{step}: {text}") from error


def flags(options: Mapping[str, Any]) -> list[str]:
    """{"size": 64, "quick": "true", "slow": "false"} -> ["--size", "64", "--quick"]."""
    words: list[str] = []
    for key, value in options.items():
        if str(value).lower() == "true":
            words.append(f"--{key}")
        elif str(value).lower() != "false":
            words += [f"--{key}", str(value)]
    return words


def check_flags(step: str, options: Mapping[str, Any], parser: argparse.ArgumentParser) -> None:
    """A ValueError for an option that the step's script doesn't have."""
    known = [
        name.removeprefix("--")
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    ]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"close ones: {', '.join(near)}" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{step}: nothing reads {step}.{key} ({hint}).")
