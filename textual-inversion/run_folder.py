"""A run's folder: checkpoints and the loss curve. Files appear whole or not at all."""

import csv
import os
import re
import shutil
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STATE = "state.pt"  # a checkpoint-N folder without it was never finished


def make_output_dir(folder: Path) -> None:
    """
    Raises:
        OSError: the folder can't be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"--output_dir {folder} is a file. Give a folder; it is made where it doesn't exist."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have done it
    except OSError as error:
        raise OSError(
            f"--output_dir {folder} can't be written to ({error.strerror}). Give another folder."
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest last."""
    found = [
        p
        for p in folder.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", p.name) and (p / STATE).is_file()
    ]
    # by time: a folder may also hold later steps of an earlier run
    return sorted(found, key=lambda p: ((p / STATE).stat().st_mtime_ns, int(p.name[11:])))


def save_checkpoint(folder: Path, step: int, state: dict, keep: int | None) -> Path:
    """Writes checkpoint-`step` and removes the oldest ones beyond `keep`."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(exist_ok=True)
    part = path / f".{STATE}.part"
    torch.save(state, part)
    os.replace(part, path / STATE)
    for old in checkpoints(folder)[: -keep if keep else 0]:
        shutil.rmtree(old)
    return path


def find_checkpoint(folder: Path, asked: str) -> Path | None:
    """The checkpoint that --resume_from_checkpoint means; None for `latest` where there is none.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    there = checkpoints(folder)
    if asked == "latest":
        return there[-1] if there else None
    for path in (Path(asked).expanduser(), folder / Path(asked).name):
        if (path / STATE).is_file():
            return path
    raise FileNotFoundError(
        f"--resume_from_checkpoint {asked}: no such checkpoint. In {folder}: "
        f"{', '.join(p.name for p in there) or 'none'}. `latest` takes the newest."
    )


def load_checkpoint(path: Path) -> dict:
    """
    Raises:
        ValueError: the file is cut off or something else.
    """
    try:
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path / STATE} can't be read: {error}. Take an older one.") from error


def running_mean(values: list[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start."""
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0)
        out.append(total / min(i + 1, window))
    return out


def write_loss_curve(folder: Path, losses: list[float], rates: list[float]) -> None:
    """loss.csv (step, loss, learning rate) and loss.png (each step's, and a running mean)."""
    part = folder / ".loss.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "learning_rate"])
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
            writer.writerow([step, f"{loss:.6f}", f"{rate:.6g}"])
    os.replace(part, folder / "loss.csv")

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="denoising loss")
    steps = range(1, len(losses) + 1)
    window = max(1, len(losses) // 10)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="each step")
    axes.plot(steps, running_mean(losses, window), label=f"mean of {window}")
    axes.legend(frameon=False)
    part = folder / ".loss.png.part"
    figure.savefig(part, format="png", dpi=120)
    os.replace(part, folder / "loss.png")
