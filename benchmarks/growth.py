"""Time and memory of a training step over frames, pixels and the size of the trained grid.

python benchmarks/growth.py --stage 2 [--field deformation|grid] [--compile graph] [--steps 4]
    [--axes frames pixels grid] [--sizes N ...] [--toy] [--tiny] [--figures FILE] [key=value ...]
python benchmarks/growth.py --stage 2 --draw docs/growth.png

The steps are step.py's, the clips such that none starts from zero, each step with a target of its
own. One size is changed at a time: the frames of a clip, the pixels on a side of its render (a
prior sees its own size), and of what is trained (deformation: the cells along a side of D's
lattices, as multiples of the config's; grid: the entries of a level, 2^N). Work is the number of
frames, of pixels, of trained numbers. What is printed below them is the exponent p of "grows as
work^p" between the two largest sizes; where p > 1 by more than measuring is off, it says so:
nothing should grow faster than its work. Each size has a process of its own, so that one that fails
or has too little memory is a row that says so. Medians and exponents go into figures.json as
`growth.<step>.<axis>...` (`--figures FILE`: elsewhere; `--tiny`: nowhere else) size by size;
`--draw` makes a picture of them and measures nothing. Memory is CUDA's peak. On a CPU it is the
process's own, less what the libraries take, and time that of the cores (OMP_NUM_THREADS=1: of one),
which other programs don't lengthen much. GB are 10^9 bytes.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

# before torch is loaded, as launch.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from animate124.host.argument_types import positive_int
from animate124.pipeline.request import GRID
from measuring import FIGURES, record
from omegaconf import OmegaConf
from probes import Watch
from stages import ROOT, config_name, step_options, train, which

AXES = {  # name -> sizes of full-size models, and of the toy
    "frames": ((8, 16, 32, 64), (4, 8, 16, 32)),
    "pixels": ((64, 128, 256, 512), (16, 32, 64, 128)),
    "grid": ((1, 2, 4), (1, 2, 3)),
}
TABLES = ((17, 18, 19, 20, 21), (12, 13, 14, 15))  # "grid" with --field grid
# targets that serve several steps are no step's own
ANEW = {
    "data.single_view.n_cameras": 0,
    "data.single_view.n_clips": 0,
    "system.guidance.target_uses": 1,
    "system.guidance_3d.target_uses": 1,
}
TOLERANCE = 0.1  # of an exponent
UNITS = {"ms": "ms", "gb": "GB"}
LABELS = {"frames": "frames", "pixels": "pixels on a side", "grid": "size of what is trained"}
T = TypeVar("T")


@dataclass
class Point:
    """A measured size."""

    size: int
    work: float
    ms: float
    gb: float


def sizes_of(axis: str, args: argparse.Namespace) -> tuple[int, ...]:
    """The axis's sizes, small to large."""
    if args.sizes:
        return tuple(sorted(set(args.sizes)))
    small = args.toy or args.tiny
    return (TABLES if axis == "grid" and args.field == GRID else AXES[axis])[small]


def overrides_of(axis: str, size: int, args: argparse.Namespace) -> list[str]:
    """What makes the config's step one of this size; nothing where it is."""
    cfg = OmegaConf.load(ROOT / "configs" / f"{config_name(args)}.yaml")
    single, encoding = "data.single_view", "system.geometry.pos_encoding_config"
    values: dict[str, Any]
    if axis == "frames":
        values = {f"{single}.num_frames": size}
    elif axis == "pixels":
        sides = ("width", "height") if args.stage == 1 else ("width_vid", "height_vid")
        values = {f"{single}.{side}": size for side in sides}
    elif args.field == GRID or args.stage == 1:
        values = {f"{encoding}.log2_hashmap_size": size}
    else:
        cells = OmegaConf.select(cfg, f"{encoding}.deformation_cells")
        values = {f"{encoding}.deformation_cells": [n * size for n in cells]}
    values |= {key: value for key, value in ANEW.items() if OmegaConf.select(cfg, key)}
    own = {} if args.tiny else {key: OmegaConf.select(cfg, key) for key in values}
    return [f"{key}={value}" for key, value in values.items() if value != own.get(key)]


def resident(name: str) -> float:
    """GB that this process has (VmRSS) or had at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024 / 1e9


class Measured(NamedTuple):
    ms: float
    gb: float
    trained: int  # numbers


class Sized(Watch):
    """Also takes down the most memory of the measured steps, and the time of a CPU's cores."""

    def __init__(self, warm_up: int, measured: int) -> None:
        super().__init__(warm_up, measured, 0)
        self.before = resident("VmRSS")
        self.gb = 0.0
        self.cores: list[float] = []  # seconds, at the starts of steps

    def times(self, kind: str) -> list[float]:
        if torch.cuda.is_available():
            return super().times(kind)
        steps = [i for i in range(self.first, self.split) if self.kinds[i] == kind]
        return [1e3 * (self.cores[i + 1] - self.cores[i]) for i in steps]

    def on_train_batch_start(self, trainer, system, batch, batch_idx) -> None:
        self.cores.append(time.process_time())
        if batch_idx == self.first:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
        super().on_train_batch_start(trainer, system, batch, batch_idx)
        if batch_idx == self.split:
            on_gpu = torch.cuda.is_available()
            self.gb = self.peak["allocated"] if on_gpu else resident("VmHWM") - self.before


def measure(own: list[str], args: argparse.Namespace) -> Measured | str:
    """A step with these settings, or why there is none."""
    words = ["data.single_view.mirror_rate=1.0", *own, *args.overrides]
    given = argparse.Namespace(**{**vars(args), "overrides": words})
    watch, here = Sized(args.warm_up, args.steps), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = train(given, Path(folder), watch, watch.last + 1)
        except torch.cuda.OutOfMemoryError:
            return "out of memory"
        finally:
            os.chdir(here)
    times = [watch.times(kind) for kind in ("usual", "start")]
    system = trainer.lightning_module
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    return Measured(statistics.median(times[0] or times[1]), watch.gb, trained)


def apart(function: Callable[..., T], *given: object) -> T:
    """What it returns in a fork of this process, which has no GPU itself, so that each can.

    Raises:
        Exception: what it raised; BrokenProcessPool where it was killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *given).result()


def measure_axis(
    axis: str, args: argparse.Namespace, known: dict[str, Measured | str], file: Path | None
) -> None:
    """Prints the axis's table row by row, and writes each row's figures.

    known: what was measured before, by its settings.
    """
    points: list[Point] = []
    print(f"\n{axis:>8}{'work':>12}{'ms':>10}{'ms / work':>12}{'GB':>8}   (ms / work: first is 1)")
    for size in sizes_of(axis, args):
        own = overrides_of(axis, size, args)
        if str(own) not in known:
            try:
                known[str(own)] = apart(measure, own, args)
            except Exception as error:
                known[str(own)] = f"failed: {type(error).__name__}: {error}"
        found = known[str(own)]
        if isinstance(found, str):
            print(f"{size:>8}   {found}", flush=True)
            continue
        work = {"frames": size, "pixels": size**2, "grid": found.trained}[axis]
        points.append(Point(size, work, found.ms, found.gb))
        share = found.ms / work / (points[0].ms / points[0].work)
        print(f"{size:>8}{work:>12.4g}{found.ms:>10.1f}{share:>12.3f}{found.gb:>8.2f}", flush=True)
        if file:
            apart(record, figures_of(f"growth.{which(args)}.{axis}", points), file)
    if len(points) > 1:
        for name, p in exponents(points).items():
            faster = " FASTER THAN ITS WORK" * (p > 1 + TOLERANCE)
            print(f"{UNITS[name]} as work^{p:.2f} at the end{faster}", flush=True)


def exponents(points: list[Point]) -> dict[str, float]:
    """p of "grows as work^p" between the two largest sizes, of ms and GB."""
    before, last = points[-2:]
    grown = math.log(last.work / before.work)
    return {name: math.log(getattr(last, name) / getattr(before, name)) / grown for name in UNITS}


def figures_of(place: str, points: list[Point]) -> dict[str, tuple[float, str]]:
    """Names, values and units."""
    figures = {}
    for point in points:
        for name, unit in UNITS.items():
            figures[f"{place}.{point.size}.{name}"] = getattr(point, name), unit
        figures[f"{place}.{point.size}.work"] = point.work, "frames, pixels or trained numbers"
    if len(points) > 1:
        for name, p in exponents(points).items():
            figures[f"{place}.{name}_exponent"] = p, "of work, at the largest sizes"
    return figures


def read(place: str, held: dict) -> list[Point]:
    """What `figures_of` wrote."""
    found: dict[int, dict[str, float]] = {}
    for key, figure in held.items():
        size, _, name = key.removeprefix(f"{place}.").partition(".")
        if key.startswith(f"{place}.") and size.isdigit():
            found.setdefault(int(size), {})[name] = figure["value"]
    return [Point(size, **found[size]) for size in sorted(found)]


def draw(place: str, held: dict, file: Path) -> None:
    """ms and GB over work, both logarithmic, beside lines as steep as work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = [axis for axis in AXES if len(read(f"{place}.{axis}", held)) > 1]
    if not axes:
        raise SystemExit(f"No two sizes of {place} were measured yet: first without --draw.")
    figure, panels = pyplot.subplots(
        2, len(axes), figsize=(3.4 * len(axes), 5), squeeze=False, layout="constrained"
    )
    for column, axis in zip(panels.T, axes, strict=True):
        points = read(f"{place}.{axis}", held)
        work = [p.work for p in points]
        for panel, (name, unit) in zip(column, UNITS.items(), strict=True):
            values = [getattr(p, name) for p in points]
            as_work = [values[-1] * w / work[-1] for w in work]
            panel.loglog(work, as_work, ":", color="gray", label="as its work")
            panel.loglog(work, values, "o-", label=unit)
            panel.set_xticks(work, [f"{p.size}" for p in points])
            ends = [float(f"{value:.3g}") for value in (min(values), max(values))]
            panel.set_yticks(ends, [f"{value:g}" for value in ends])
            panel.minorticks_off()
            panel.set_ylabel(unit)
            panel.set_ylim(min(values) / 2, max(values) * 1.5)
            p = exponents(points)[name]
            panel.set_title(f"{axis}: work^{p:.2f} at the end", fontsize=10)
        column[1].set_xlabel(LABELS[axis])
    panels[0, 0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = step_options((__doc__ or "").partition("\n")[0])
    parser.add_argument("--axes", nargs="+", choices=[*AXES], default=[*AXES])
    parser.add_argument("--sizes", type=positive_int, nargs="+", help="in place of an axis's own")
    parser.add_argument("--steps", type=positive_int, default=4, help="steps that are measured")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw what was measured")
    parser.set_defaults(warm_up=3)
    args = parser.parse_args()
    if args.stage == 1 and "frames" in args.axes and not args.draw:
        args.axes.remove("frames")  # no clips
    file = args.figures or (None if args.tiny else FIGURES)
    if args.draw:
        source = file or FIGURES
        held = json.loads(source.read_text()) if source.exists() else {}
        draw(f"growth.{which(args)}", held, args.draw)
        return
    known: dict[str, Measured | str] = {}
    for axis in args.axes:
        measure_axis(axis, args, known, file and file.resolve())
    if all(isinstance(found, str) for found in known.values()):
        raise SystemExit("No size could be measured.")


if __name__ == "__main__":
    main()
