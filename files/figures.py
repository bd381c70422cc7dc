"""benchmarks/figures.json: every figure that was measured, with where it comes from."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

FIGURES = Path(__file__).resolve().parents[1] / "benchmarks" / "figures.json"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def commit() -> str:
    """Of this checkout; of a copy without its history, what the variable COMMIT says.

    Raises:
        RuntimeError: neither tells.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    folder = FIGURES.parents[1]
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"A figure names the commit that it is of, but {folder} has no history that git could "
            "read. Set the variable COMMIT to what it is a copy of, such as COMMIT=4214c66."
        ) from error


def record(
    figures: Mapping[str, tuple[float, str]],
    command: str,
    path: Path = FIGURES,
    *,
    device: str | None = None,
    tree: str | None = None,
) -> None:
    """Writes value and unit of each figure into the file, beside what it holds of others; with
    the command, and the device and commit that they are of (None: this one's).
    """
    where = {
        "device": device_name() if device is None else device,
        "command": command,
        "commit": commit() if tree is None else tree,
    }
    held = json.loads(path.read_text()) if path.exists() else {}
    for key, (value, unit) in figures.items():
        held[key] = {"value": float(f"{value:.4g}"), "unit": unit, **where}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n")
