"""Models, files and folders that a person names, which means from where animate.py was called. The
commands of a plan run in the checkout's folder instead; of an installed package, where it was
called."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or the installed package
CHECKOUT = (ROOT / "pyproject.toml").is_file()
# what keys end in whose values are a folder in diffusers' or transformers' format, or a hub id
MODELS = (
    "pretrained_model_name_or_path",
    "controlnet_name_or_path",
    "unet_name_or_path",
    "motion_adapter_name_or_path",
    "sparsectrl_name_or_path",
    "tokenizer_name",
)
MODELS += ("depth_model", "normal_model", "caption_model")
FILES = ("cond_image_path", "network_file", "lora")
WEIGHTS = "weights"  # <checkpoint>:<module>


def workplace() -> Path:
    """Where a plan's commands run: what they write by themselves (caches) is never a package's."""
    return ROOT if CHECKOUT else Path.cwd()


def shown(path: Path) -> str:
    """A path for a plan's commands: relative if it lies where they run."""
    path, place = Path(os.path.abspath(path.expanduser())), workplace()
    return str(path.relative_to(place)) if path.is_relative_to(place) else str(path)


def as_meant(word: str, key: str, value: str) -> str:
    """The value of an override `key`; one that is a path, as the commands have to name it.

    word: what a message calls it.

    Raises:
        FileNotFoundError: a path to nothing, or to a file where a folder is needed.
    """
    name = key.rpartition(".")[2]
    if name not in (*MODELS, *FILES, WEIGHTS):
        return value
    if len(value) > 2 and value[0] == value[-1] in "'\"":  # as YAML may be written
        value = value[1:-1]
    if value in ("", "null") or value.startswith("${"):
        return value
    if name in MODELS:
        return model_as_meant(word, value)
    if name in FILES:
        return file_as_meant(word, value)
    path, colon, module = value.rpartition(":")
    return f"{file_as_meant(word, path)}:{module}" if colon else value


def model_as_meant(word: str, value: str) -> str:
    path = Path(os.path.expanduser(value))
    if path.is_dir():
        return shown(path)
    if path.exists():
        raise FileNotFoundError(
            f"{word}: {path} is a file. A folder in diffusers' format is needed, or a hub id such "
            "as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    if (ROOT / path).is_dir():
        raise FileNotFoundError(
            f"{word}: there is no folder {value} in {Path.cwd()}; {ROOT / path} is one. Write it "
            "in full if that is meant."
        )
    if not is_hub_id(value):
        raise FileNotFoundError(
            f"{word}: there is no folder {path.absolute()}. A folder in diffusers' format is "
            "needed, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    return value


def is_hub_id(value: str) -> bool:
    """Whether it could be the id of a model on the hub, owner/name, rather than a path."""
    parts = value.split("/")
    return len(parts) == 2 and all(parts) and value[0] not in "~." and "\\" not in value


def file_as_meant(word: str, value: str) -> str:
    path = Path(os.path.expanduser(value))
    if not path.is_file():
        raise FileNotFoundError(f"{word}: there is no file {path.absolute()}.")
    return shown(path)


def check_writable(folder: Path) -> None:
    """An OSError unless files could be written into the folder, which needn't be there yet."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"Nothing can be written to {folder}: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"Nothing can be written to {folder}: {nearest} is read-only for you."
        )


def located(model: str) -> str:
    """A model of a config as it is found from anywhere; a hub id stays."""
    for place in (workplace(), ROOT):  # a config of ours names those that come with it
        if (folder := place / os.path.expanduser(model)).is_dir():
            return str(folder)
    return model


def model_shown(model: str) -> str:
    """A model of a config for a plan's commands."""
    found = located(model)
    return shown(Path(found)) if Path(found).is_dir() else model


def models_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The models that a stage's config names, with their dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from models_of(value, f"{prefix}{key}.")
        elif key in MODELS and isinstance(value, str) and value:
            yield f"{prefix}{key}", value
