"""Ranks and devices, schedules, checkpoints, the newest trial."""

import gc
import glob
import hashlib
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any, overload

import torch
from packaging import version
from threestudio.log import get_rank, warn
from threestudio.registry import close_names
from threestudio.utils.bounds import schedule_knots
from threestudio.utils.checkpoints import read_checkpoint


def parse_version(text: str) -> version.Version:
    """A version that compares as versions do."""
    return version.parse(text)


def get_device() -> torch.device:
    """This process's GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{int(os.environ.get('LOCAL_RANK', get_rank()))}")


def load_module_weights(
    path: str,
    module_name: str | None = None,
    ignore_modules: list[str] | None = None,
    map_location: Any = None,
) -> tuple[dict[str, torch.Tensor], int, int]:
    """(state dict, epoch, global step) of a checkpoint.

    `module_name` keeps that module's entries and takes its name off them; `ignore_modules` drops
    the modules named.
    """
    if module_name is not None and ignore_modules is not None:
        raise ValueError("Give module_name or ignore_modules, not both.")
    ckpt = read_checkpoint(
        path, map_location=get_device() if map_location is None else map_location
    )
    state_dict = ckpt["state_dict"]
    if ignore_modules is not None:
        dropped = tuple(f"{name}." for name in ignore_modules)
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(dropped)}
    if module_name is not None:
        prefix = f"{module_name}."
        kept = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if not kept:
            modules = sorted({k.partition(".")[0] for k in state_dict})
            raise ValueError(
                f"{path} holds no module {module_name!r}; it holds "
                f"{', '.join(modules) or 'nothing'}."
            )
        state_dict = kept
    return state_dict, int(ckpt.get("epoch", 0)), int(ckpt.get("global_step", 0))


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    """A number, or a schedule's value now; see `bounds.schedule_knots` for its forms.

    Knots count in global steps if the segment's end is an int, in epochs if it is a float.
    """
    if isinstance(value, (int, float)):
        return value
    knots = schedule_knots(value)
    segment = sum(global_step >= step for step, _ in knots[1:-1])
    (start_step, start_value), (end_step, end_value) = knots[segment : segment + 2]
    now = epoch if isinstance(end_step, float) else global_step
    if end_step == start_step:
        t = float(now >= end_step)
    else:
        t = min(max((now - start_step) / (end_step - start_step), 0.0), 1.0)
    if interpolation == "linear":
        return start_value + (end_value - start_value) * t
    if interpolation == "exp":
        if start_value <= 0 or end_value <= 0:
            raise ValueError(
                f"Exponential interpolation needs positive values, got {start_value} and "
                f"{end_value}."
            )
        return start_value ** (1 - t) * end_value**t
    raise ValueError(f"Unknown interpolation {interpolation!r}: use 'linear' or 'exp'.")


def cleanup() -> None:
    """Gives memory back that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Waits for the other processes, if there are any."""
    if _distributed():
        torch.distributed.barrier()


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """The tensor of process `src`, in every process."""
    if _distributed():
        torch.distributed.broadcast(tensor, src=src)
    return tensor


def enable_gradient(model: torch.nn.Module, enabled: bool = True) -> None:
    """Lets all parameters be trained, or none."""
    for param in model.parameters():
        param.requires_grad_(enabled)


def _trial_time(folder: Path) -> str:
    """When a trial began: the timestamp of its name, else the folder's last change."""
    stamp = re.search(r"\d{8}-\d{6}$", folder.name)
    if stamp:
        return stamp.group()
    return datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y%m%d-%H%M%S")


def trial_folder_name(tag: str) -> str:
    """The tag as one folder name: no slashes, and not longer than file systems allow.

    (They stop at 255 bytes. A long tag is cut and ends in its hash.)
    """
    name = tag.replace("/", "_")
    if len(name.encode()) <= 200:
        return name
    start = name.encode()[:190].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(tag.encode()).hexdigest()[:8]}"


@overload
def find_last_path(path: str) -> str: ...


@overload
def find_last_path(path: None) -> None: ...


def find_last_path(path: str | None) -> str | None:
    """`outputs/<name>/<tag>@LAST/ckpts/last.ckpt` with the newest trial put in; other paths come
    back as they are.

    Spaces in the tag are read as `_`, as the stage YAMLs write them. A newer trial without the
    file (it was stopped early) is passed over with a warning. A folder called just `LAST` stands
    for the newest trial of any tag.
    """
    if path is None:
        return None
    parts = Path(path).parts
    here = next(
        (i for i, part in enumerate(parts) if part == "LAST" or part.endswith("@LAST")), None
    )
    if here is None:
        return path
    base = Path(*parts[:here])
    # the name of a trial whose tag has slashes in it
    for start in range(here - 1, 0, -1):
        folder, name = Path(*parts[:start]), trial_folder_name("/".join(parts[start : here + 1]))
        if not base.is_dir() and any(folder.glob(f"{glob.escape(name.removesuffix('LAST'))}*")):
            return find_last_path(str(Path(folder, name, *parts[here + 1 :])))
    if not base.is_dir():
        base = Path(*(part.replace(" ", "_") for part in parts[:here]))
    tag, at, _ = parts[here].rpartition("@")
    prefix = trial_folder_name(tag.replace(" ", "_")) + at
    suffix = Path(*parts[here + 1 :])
    trials = [p for p in base.iterdir() if p.is_dir()] if base.is_dir() else []
    matching = [p for p in trials if p.name.replace(" ", "_").startswith(prefix)]
    # folders without content belong to launches that never began (one of them may be this very
    # launch)
    matching = sorted((p for p in matching if any(p.iterdir())), key=_trial_time, reverse=True)
    if not matching:
        tags = sorted({p.name.rpartition("@")[0] or p.name for p in trials})
        near = close_names(prefix.removesuffix("@"), tags) or tags[:5]
        raise FileNotFoundError(
            f"{path}: there is no trial {str(base / prefix)!r}... yet. "
            + (f"{base} has {', '.join(near)}. " if near else f"{base} has no trial at all. ")
            + "Run the earlier stage first, with the same name, tag and exp_root_dir."
        )
    for i, trial in enumerate(matching):
        if (trial / suffix).exists():
            if i > 0:
                warn(
                    f"{matching[0]} has no {suffix} (was it stopped early?); taking the "
                    f"older {trial}."
                )
            return str(trial / suffix)
    raise FileNotFoundError(
        f"{path}: the newest trial {matching[0]} has no {suffix}. Did it run to its end? "
        "Checkpoints of a run that was "
        f"stopped are in {matching[0] / 'ckpts'}; resume=<one of them> finishes it."
    )
