"""How the benchmarks measure: times, once the GPU is done, and a cap on its memory; and where they
write figures down.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

FIGURES = Path(__file__).with_name("figures.json")


def now() -> float:
    """Seconds on the clock, when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(call: Callable[[], object], repeats: int, warm_up: int = 0) -> list[float]:
    """Of each call, after some that warm up (and compile)."""
    times = []
    for _ in range(warm_up + repeats):
        start = now()
        call()
        times.append(1e3 * (now() - start))
    return times[warm_up:]


def cap_memory(gb: float | None) -> None:
    """Lets CUDA have no more than this; 1 GB is 10^9 bytes, None is all."""
    if gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gb * 1e9 / total)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def commit() -> str:
    """Of this checkout; of a copy without its history, what the variable COMMIT says."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    git = ["git", "-C", str(FIGURES.parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def record(figures: Mapping[str, tuple[float, str]], path: Path = FIGURES) -> None:
    """Writes value and unit of each figure into the file, beside what it holds of others; with
    the device, this command and the commit.
    """
    name = Path(sys.argv[0]).name
    where = {
        "device": device_name(),
        "command": " ".join(["python", f"benchmarks/{name}", *sys.argv[1:]]),
        "commit": commit(),
    }
    held = json.loads(path.read_text()) if path.exists() else {}
    for key, (value, unit) in figures.items():
        held[key] = {"value": float(f"{value:.4g}"), "unit": unit, **where}
    path.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n")
