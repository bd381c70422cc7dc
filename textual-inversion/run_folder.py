"""A run's folder: checkpoints and the loss curve. Files appear whole or not at all."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from animate124.files.torch_files import not_finite, read_torch_file
from animate124.files.whole import whole_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STATE = "state.pt"  # a checkpoint-N folder without it was never finished
PARTS = {"step", "rows", "optimizer", "scaler", "losses", "settings"}  # of a state
RESULTS = ("learned_embeds*", "loss.csv", "loss.png", "validation")  # beside checkpoints


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


def put_earlier_aside(folder: Path) -> Path | None:
    """Before a run that starts anew: an earlier one's checkpoints and results go to the folder
    that is returned, earlier-1, earlier-2 ...; None where there are none."""
    there = [*checkpoints(folder), *(p for pattern in RESULTS for p in folder.glob(pattern))]
    if not there:
        return None
    n = 1
    while (folder / f"earlier-{n}").exists():
        n += 1
    aside = folder / f"earlier-{n}"
    aside.mkdir()
    for path in there:
        path.rename(aside / path.name)
    return aside


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


def running_mean(values: list[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start. Steps that were undone have a loss
    that is no number, and don't count."""
    values = np.array(values, np.float64)
    there = np.isfinite(values)
    sums = np.concatenate([[0], np.where(there, values, 0).cumsum()])
    counts = np.concatenate([[0], there.cumsum()])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    n = counts[end] - counts[start]
    return np.where(n > 0, (sums[end] - sums[start]) / np.maximum(n, 1), np.nan).tolist()


def write_loss_curve(folder: Path, losses: list[float], rates: list[float]) -> None:
    """loss.csv (step, loss, learning rate) and loss.png (each step's, and a running mean)."""
    with whole_file(folder / "loss.csv") as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "learning_rate"])
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
            writer.writerow([step, f"{loss:.6f}", f"{rate:.6g}"])

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="denoising loss")
    steps = range(1, len(losses) + 1)
    window = max(1, len(losses) // 10)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="each step")
    axes.plot(steps, running_mean(losses, window), label=f"mean of {window}")
    axes.legend(frameon=False)
    with whole_file(folder / "loss.png") as part:
        figure.savefig(part, format="png", dpi=120)
