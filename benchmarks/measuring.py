"""How the benchmarks measure: times, once the GPU is done, and a cap on its memory; and where they
write figures down.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from animate124.files.figures import FIGURES, device_name
from animate124.files.figures import record as write_down

__all__ = ["FIGURES", "cap_memory", "device_name", "milliseconds", "now", "record"]


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
    """Lets CUDA, where it is, have no more than this; 1 GB is 10^9 bytes, None is all."""
    if gb and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gb * 1e9 / total)


def record(figures: Mapping[str, tuple[float, str]], path: Path = FIGURES) -> None:
    """Writes value and unit of each figure into the file, with this script's command."""
    name = Path(sys.argv[0]).name
    write_down(figures, " ".join(["python", f"benchmarks/{name}", *sys.argv[1:]]), path)
