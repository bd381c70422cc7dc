"""What can be known about a launch before anything is made, loaded or waited for.

`check` reads a stage's config as a launch would and looks at every section of it: names, values,
what has to go together, and the files and folders that have to be there.
"""

import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from threestudio.log import info
from threestudio.registry import close_names, find
from threestudio.systems.base import BaseLift3DSystem, BaseSystem, sections
from threestudio.systems.utils import check_optimizer
from threestudio.utils.bounds import Bounded, bounded, paths
from threestudio.utils.config import (
    ExperimentSettings,
    config_to_primitive,
    merge_config,
    parse_structured,
)
from threestudio.utils.misc import find_last_path

TOGETHER = ("geometry", "material", "background", "renderer")  # sections of a scene
AMOUNT = int | float | None


@dataclass
class TrainerValues(Bounded):
    """Keys of `trainer` whose values Lightning takes without a look."""

    max_steps: int = bounded(-1, 1, names=(-1,))
    min_steps: int | None = bounded(None, 0)
    max_epochs: int | None = bounded(None, 1, names=(-1,))
    min_epochs: int | None = bounded(None, 0)
    val_check_interval: AMOUNT = bounded(None, above=0)
    check_val_every_n_epoch: int | None = bounded(1, 1)
    log_every_n_steps: int | None = bounded(50, 0)
    accumulate_grad_batches: int = bounded(1, 1)
    gradient_clip_val: AMOUNT = bounded(None, 0)
    limit_train_batches: AMOUNT = bounded(None, 0)
    limit_val_batches: AMOUNT = bounded(None, 0)
    limit_test_batches: AMOUNT = bounded(None, 0)
    limit_predict_batches: AMOUNT = bounded(None, 0)
    overfit_batches: int | float = bounded(0.0, 0)
    num_sanity_val_steps: int | None = bounded(2, 0, names=(-1,))
    num_nodes: int = bounded(1, 1)
    enable_checkpointing: bool | None = None


@dataclass
class CheckpointValues(Bounded):
    """Keys of `checkpoint`, likewise."""

    save_top_k: int = bounded(1, -1)
    save_last: Any = bounded(None, names=(None, True, False, "link"))
    every_n_train_steps: int | None = bounded(None, 0)
    every_n_epochs: int | None = bounded(None, 0)
    mode: str = bounded("min", names=("min", "max"))


def check(
    config: str | Path,
    cli_args: list[str],
    *,
    n_gpus: int = 0,
    folder: str | Path = ".",
    later: Collection[str] = (),
) -> None:
    """All that `launch.py --train` would find wrong before its models are loaded.

    folder: where the launch would run; `later`: paths that will be there by then.

    Raises:
        ValueError, KeyError, OSError: what is wrong, in a line.
    """
    merged = merge_config(str(config), cli_args=cli_args, n_gpus=max(1, n_gpus))
    cfg = parse_structured(ExperimentSettings, merged)
    check_experiment(cfg, n_gpus, folder=folder, later=later)


def check_experiment(
    cfg: Any,
    n_gpus: int,
    *,
    train: bool = True,
    export: bool = False,
    folder: str | Path = ".",
    later: Collection[str] = (),
) -> None:
    """The same for a config that is read already."""
    check_trainer(trainer_options(config_to_primitive(cfg.trainer), n_gpus, quiet=True))
    check_checkpoint(config_to_primitive(cfg.checkpoint))

    found: dict[str, tuple[str, Any]] = {}  # key -> kind of path, value
    for key in ("data_type", "system_type"):
        if not cfg[key]:
            raise ValueError(f"{key} is empty: give a registered name, as a stage's config has it.")
    data = find(cfg.data_type)(cfg.data)
    settings = getattr(data, "cfg", None)
    if train and settings is not None:
        kind = OmegaConf.get_type(settings) if OmegaConf.is_config(settings) else type(settings)
        found |= _paths(kind or dict, settings, "data")

    kind = find(cfg.system_type)
    system = parse_structured(kind.Config, cfg.system)
    found |= _paths(kind.Config, system, "system")
    used = [*TOGETHER, *(["exporter"] if export else [])]
    if train:
        used = kind.used_in_training(system)
        if system.optimizer or kind.configure_optimizers is BaseSystem.configure_optimizers:
            check_optimizer(system.optimizer, system.scheduler)
        kind.check_with_data(system, settings)
        _check_loggers(system.loggers)
    for section in sections(kind.Config):
        name = system[f"{section}_type"]
        if not name and not (section in TOGETHER and issubclass(kind, BaseLift3DSystem)):
            continue
        module = find(name)
        config = parse_structured(module.Config, system[section])
        if section in used:
            found |= _paths(module.Config, config, f"system.{section}")
            _check_needed(module.Config, config, f"system.{section}")
    if cfg.resume is not None:
        found["resume"] = "resume", cfg.resume
    places = {os.path.abspath(os.path.join(folder, path)) for path in later}
    for key, (what, value) in found.items():
        starts = what in ("checkpoint", "weights")
        if value is None or (starts and cfg.resume is not None) or what == "new folder":
            continue
        if os.path.abspath(os.path.join(folder, value)) not in places:
            _check_path(key, what, value, Path(folder))


def _check_loggers(loggers: Any) -> None:
    wandb = loggers.get("wandb")
    if wandb is not None and not OmegaConf.is_dict(wandb):
        raise ValueError(f"system.loggers.wandb is {wandb}, but has to be a section of its own.")
    if wandb and wandb.get("enable") and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "system.loggers.wandb.enable=true needs wandb, which isn't installed: "
            "pip install wandb, or leave it out (TensorBoard and CSV logs are always written)."
        )


def _paths(fields: type, cfg: Any, where: str) -> dict[str, tuple[str, Any]]:
    return {f"{where}.{name}": path for name, path in paths(fields, cfg).items()}


def _check_needed(config: type, cfg: Any, where: str) -> None:
    for f in fields(config):
        if f.metadata.get("needed") and not str(cfg[f.name]).strip():
            raise ValueError(f"{where}.{f.name} is blank, but has to say something.")


def _check_path(key: str, what: str, value: str, folder: Path) -> None:
    """An error unless the file or folder that a key names is there."""
    here = f"(working directory: {folder.absolute()})"
    if what == "weights":
        value, colon, _ = value.rpartition(":")
        if not colon:
            raise ValueError(f"{key} should be <checkpoint>:<module>, such as last.ckpt:geometry.")
    if what in ("checkpoint", "weights", "resume"):
        value = find_last_path(value)
    path = folder / value
    if what in ("checkpoint", "weights", "resume"):
        if path.is_dir():
            last = path / "ckpts" / "last.ckpt"
            hint = f", such as {last}" if last.is_file() else ""
            raise FileNotFoundError(f"{key}: {value} is a folder; give a checkpoint{hint}.")
        if not path.is_file():
            raise FileNotFoundError(f"{key}: There is no checkpoint {value!r} {here}.")
        return
    if what == "file":
        if not value:
            raise ValueError(f"{key} must be given: pass {key}=<a file>.")
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{key}: {value} {kind} {here}.")
        return
    # a model: a folder, else a hub id, <owner>/<name>
    if not value:
        raise ValueError(f"{key} is empty: give a folder in diffusers' format, or a hub id.")
    local = value.startswith(("/", ".", "~")) or value.count("/") != 1
    local = local or path.parent.is_dir() or path.exists()
    if local and not path.is_dir():
        kind = "is a file, not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{key}: the model folder {value!r} {kind} {here}. Give a folder in diffusers' format, "
            "or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )


def check_names(section: str, given: Mapping[str, Any], function: Callable) -> None:
    """A key of the section that the function doesn't take is an error that names the close ones."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for key in given:
        if key not in known:
            near = close_names(key, known)
            hint = f"close keys: {', '.join(near)}" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"Nothing reads the key {section}.{key} ({hint}).")


def trainer_options(options: Mapping[str, Any], n_gpus: int, quiet: bool = False) -> dict[str, Any]:
    """The config's `trainer` section with what it leaves open filled in to suit the machine."""
    check_names("trainer", options, pl.Trainer.__init__)
    options = {"inference_mode": False, **options}  # normals need gradients in validation too
    options.setdefault("accelerator", "gpu" if n_gpus else "cpu")
    on_cpu = options["accelerator"] == "cpu"
    options.setdefault("devices", 1 if on_cpu else -1)
    several = options["devices"] not in (1, "1", -1, "-1", "auto") or (not on_cpu and n_gpus > 1)
    if several and "strategy" not in options:
        # a batch without clips, or a scene without samples, leaves parameters unused
        options["strategy"] = "ddp_find_unused_parameters_true"
    if on_cpu and str(options.get("precision")) in ("16", "16-mixed", "16-true"):
        if not quiet:
            info(
                f"trainer.precision={options['precision']} needs a GPU; this run on the CPU "
                "uses 32-true."
            )
        options["precision"] = "32-true"
    return options


def check_trainer(options: Mapping[str, Any]) -> None:
    """A ValueError for a value that Lightning's Trainer refuses, or takes without a look."""
    if options.get("callbacks"):
        raise ValueError(
            f"trainer.callbacks is {options['callbacks']}: a config can't hold callbacks. Leave it "
            "out; checkpoints, the progress bar and learning rates have theirs."
        )
    _check_values("trainer", TrainerValues, options)
    with _silent(), _says("trainer"):
        pl.Trainer(**{**options, "logger": False, "enable_checkpointing": False})


def check_checkpoint(options: Mapping[str, Any]) -> None:
    """Likewise for ModelCheckpoint."""
    check_names("checkpoint", options, ModelCheckpoint.__init__)
    _check_values("checkpoint", CheckpointValues, options)
    filename = options.get("filename")
    if filename is not None and (not isinstance(filename, str) or Path(filename).name != filename):
        raise ValueError(
            f"checkpoint.filename is {filename!r}, but has to be a name without folders: "
            "checkpoints lie in the trial's ckpts/."
        )
    with _silent(), _says("checkpoint"):
        ModelCheckpoint(**{"dirpath": "ckpts", **options})


def _check_values(section: str, values: type, options: Mapping[str, Any]) -> None:
    known = {f.name for f in fields(values)}
    given = {key: value for key, value in options.items() if key in known}
    # Lightning takes DD:HH:MM:SS too
    given = {k: v for k, v in given.items() if not (isinstance(v, str) and ":" in v)}
    parse_structured(values, OmegaConf.create({section: given})[section])


@contextmanager
def _says(section: str) -> Iterator[None]:
    """What Lightning raises about options, whatever it is, as a ValueError of the section."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{section}: {text or type(error).__name__}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Lightning's remarks on a Trainer come when the real one is built."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [(logger, logger.level) for logger in [*loggers, logging.getLogger("lightning")]]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
