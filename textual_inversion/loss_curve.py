"""The loss of each step, as a table and a picture."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files.whole import whole_file


def running_mean(values: list[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start. Steps that were undone have a loss
    that is no number, and don't count."""
    given = np.array(values, np.float64)
    there = np.isfinite(given)
    sums = np.concatenate([[0], np.where(there, given, 0).cumsum()])
    counts = np.concatenate([[0], there.cumsum()])
    end = np.arange(1, len(given) + 1)
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
