"""Overrides: `stage2.trainer.max_steps=100` for a stage's config, `token.max_train_steps=50` for a
flag of another task's script. What nothing would read is an error before anything runs."""

import argparse
import copy
import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from threestudio.check import check
from threestudio.utils.config import overridden, parse_overrides

from ..geometry.encoding import Encoding
from ..geometry.otypes import ENCODINGS
from .places import as_meant, workplace
from .request import worded

OVERRIDE = re.compile(r"(\w+)\.([\w.-]+)=(.*)", re.DOTALL)


def is_override(word: str) -> bool:
    """Whether a word of the command line is meant as one, and not as a path."""
    match = OVERRIDE.fullmatch(word)
    return match is not None and not Path(word).exists()


def by_task(words: Iterable[str]) -> dict[str, dict[str, str]]:
    """`stage2.a.b=1` -> {"stage2": {"a.b": "1"}}.

    Raises:
        ValueError: a key that is none; FileNotFoundError: a model's folder or a file that isn't
            there.
    """
    found: dict[str, dict[str, str]] = {}
    for word in words:
        match = OVERRIDE.fullmatch(word)
        if match is None:
            raise ValueError(f"{word} is no override, such as stage2.trainer.max_steps=500.")
        task, key, value = match.groups()
        if not all(key.split(".")):
            raise ValueError(f"{word}: {task}.{key} has a point too many.")
        found.setdefault(task, {})[key] = as_meant(word, key, value)
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
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig), f"{path} has no sections"
    return cfg


def stage_config(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """A stage's config with overrides `key=value`, everything that refers to others resolved.

    Raises:
        ValueError: a value that can't be read, or a key within what is no section.
    """
    cfg = copy.deepcopy(_as_written(path))
    try:
        found = OmegaConf.to_container(overridden(cfg, list(overrides)), resolve=True)
    except (ValueError, OmegaConfBaseException) as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def check_stage(
    task: str, path: Path, overrides: Iterable[str], later: Iterable[str | Path] = ()
) -> None:
    """Everything that launch.py would find wrong with a stage before its models are loaded.

    later: files that earlier tasks write. A ValueError has the task's name.
    """
    try:
        check(path, list(overrides), folder=workplace(), later=[str(file) for file in later])
    except (ValueError, KeyError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{task}: {text}") from error


def check_handover(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """A ValueError where a stage leaves no checkpoint, or one that doesn't fit the next stage.

    configs: of all stages, in order; `check_stage` has seen them.
    """
    for stage, config in configs.items():
        for key in ("trainer.enable_checkpointing", "checkpoint.save_last"):
            section, name = key.split(".")
            if config.get(section, {}).get(name) is False:
                raise ValueError(
                    f"{stage}.{key} is false, but what comes after {stage} starts from its "
                    "checkpoint, ckpts/last.ckpt: leave it out."
                )
        if config["trainer"].get("limit_train_batches") in (0, 0.0):
            raise ValueError(f"{stage}.trainer.limit_train_batches is 0: nothing would be trained.")
    for (before, first), (stage, second) in itertools.pairwise(configs.items()):
        expected, found = (layout(config["system"]["geometry"]) for config in (first, second))
        for key in misfits(expected, found):
            raise ValueError(
                f"{stage}.system.geometry.{key} is {found.get(key)}, but in {before} it is "
                f"{expected.get(key)}: each stage starts from the one before, so that this has to "
                "be given to all of them."
            )


def layout(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """What a geometry's weights have their shapes and their meaning from."""
    found = {"n_feature_dims": geometry.get("n_feature_dims"), "radius": geometry.get("radius", 1)}
    encoding = geometry.get("pos_encoding_config", {})
    usage = ENCODINGS.get(encoding.get("otype"), Encoding).usage
    found |= {f"pos_encoding_config.{k}": v for k, v in encoding.items() if k not in usage}
    network = geometry.get("mlp_network_config", {})
    return found | {f"mlp_network_config.{k}": v for k, v in network.items()}


def misfits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In which keys of their layouts a checkpoint of one stage doesn't fit the next one: in all
    that differ, or where an encoding starts from another kind's, in those that both have."""
    otype = "pos_encoding_config.otype"
    encoding = ENCODINGS.get(after.get(otype, ""), Encoding)
    keys = before.keys() | after.keys()
    if before.get(otype) in encoding.starts_from:
        keys = (before.keys() & after.keys()) - {otype}
    found = sorted(key for key in keys if before.get(key) != after.get(key))
    return [otype] if otype in found else found


# ------------------------------------------------------------------------- flags of scripts

# words for either, as spreadsheets of several languages write them
YES = {"true", "yes", "y", "on", "1", "x", "✓", "ja", "j", "oui", "si", "sí", "sim"}
YES |= {"wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar"}
NO = {"false", "no", "n", "off", "0", "-", "nein", "non", "nee", "não"}
NO |= {"falsch", "faux", "falso", "onwaar"}


def yes_or_no(text: str) -> bool:
    """What a spreadsheet or a person writes for either; a ValueError for anything else."""
    word = text.strip().lower()
    if word not in YES | NO:
        raise ValueError(f"{text!r} is neither yes nor no")
    return word in YES


def flags(
    task: str, options: Mapping[str, Any], parser: argparse.ArgumentParser, *positional: str
) -> list[str]:
    """The words of a task's script, which its own parser has seen:
    {"size": 64, "quick": "true", "slow": "false"} -> ["--size", "64", "--quick"].

    Raises:
        ValueError: an option that the script doesn't have, or a value that it refuses.
    """
    known = {
        name.removeprefix("--"): action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and action.dest != "help"
    }
    words = list(positional)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"close ones: {', '.join(near)}" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{task}: nothing reads {task}.{key} ({hint}).")
        if known[key].nargs != 0:
            words += worded(f"--{key}", str(value))
            continue
        try:
            words += [f"--{key}"] if yes_or_no(str(value)) else []
        except ValueError as error:
            raise ValueError(f"{task}.{key}={value}: {error}; true or false would do.") from None
    read_words(parser, words, lambda name: given(task, name.removeprefix("--"), options))
    return words


def given(task: str, key: str, options: Mapping[str, Any]) -> str:
    return f"{task}.{key}={options[key]}" if key in options else f"{task}.{key}"


def read_words(
    parser: argparse.ArgumentParser, words: Sequence[str], named: Callable[[str], str] = str
) -> argparse.Namespace:
    """Words as a parser reads them; what would end its script is a ValueError.

    named: what the message calls an option.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser.exit_on_error, parser.error = False, refuse
    try:
        return parser.parse_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(f"{named(error.argument_name or '')}: {error.message}") from None
