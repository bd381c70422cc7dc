"""A run's checkpoints: files that appear whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..files.torch_files import not_finite, read_torch_file
from ..files.whole import whole_file

STATE = "state.pt"  # a checkpoint-N folder without it was never finished
PARTS = {"step", "rows", "optimizer", "scaler", "losses", "settings"}  # of a state


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest last."""
    found = [
        p
        for p in folder.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", p.name) and (p / STATE).exists()
    ]
    # by time: a folder may also hold later steps of an earlier run
    return sorted(found, key=lambda p: ((p / STATE).stat().st_mtime_ns, int(p.name[11:])))


def save_checkpoint(folder: Path, step: int, state: dict, keep: int | None) -> Path:
    """Writes checkpoint-`step` and removes the oldest ones beyond `keep`, but nothing else that
    lies in their folders."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(exist_ok=True)
    with whole_file(path / STATE) as part, part.open("wb") as file:
        torch.save(state, file)
    for old in checkpoints(folder)[: -keep if keep else 0]:
        (old / STATE).unlink()
        if not any(old.iterdir()):
            old.rmdir()
    return path


def asked_checkpoint(
    folder: Path, asked: str | None, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The state to go on from, by --resume_from_checkpoint; None starts anew.

    Raises:
        ValueError, OSError: there is none by that name, or it can't be used.
    """
    if not asked:
        return None
    if asked == "latest":
        path, state = newest_checkpoint(folder, say)
    else:
        path = find_checkpoint(folder, asked)
        state = load_checkpoint(path)
    if state is None:
        say(f"resume: {folder} has no checkpoint to go on from; starting anew")
    else:
        say(f"resume: {path}, step {state['step']}")
    return state


def find_checkpoint(folder: Path, asked: str) -> Path:
    """The checkpoint that --resume_from_checkpoint names.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    for path in (Path(asked).expanduser(), folder / Path(asked).name):
        if (path / STATE).is_file():
            return path
    raise FileNotFoundError(
        f"--resume_from_checkpoint {asked}: no such checkpoint. In {folder}: "
        f"{', '.join(p.name for p in checkpoints(folder)) or 'none'}. `latest` takes the newest."
    )


def newest_checkpoint(
    folder: Path, say: Callable[[str], None]
) -> tuple[Path, dict] | tuple[None, None]:
    """The newest checkpoint that can be read, and its state; of newer ones that can't it is said
    why. None where there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, load_checkpoint(path)
        except (ValueError, OSError) as error:
            say(f"resume: {error}")
    return None, None


def load_checkpoint(path: Path) -> dict:
    """
    Raises:
        ValueError: the file is damaged, something else, or holds what is no number.
    """
    state = read_torch_file(path / STATE)
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise ValueError(f"{path / STATE} is no checkpoint of this script. Take another one.")
    moments = {f"{i} {k}": v for i, of in state["optimizer"].items() for k, v in of.items()}
    if bad := not_finite({"rows": state["rows"], **moments}):
        raise ValueError(f"{path / STATE} holds nan or infinity ({bad[0]}). Take an older one.")
    return state
