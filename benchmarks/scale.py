"""Batches a second of a stage on one GPU and on several, with full-size random models.

python benchmarks/scale.py [--stages 1 2 3] [--devices 1 2 4] [--field deformation|grid]
    [--steps 60] [--warm-up 16] [--limit 600] [--set key=value] [--tiny] [--figures FILE]

Each stage is trained by step.py on so many GPUs, one after the other: DDP, a batch a GPU, and the
same kinds of batch in the same order on however many. What is compared is the number of batches
over the time of all the measured steps, single long ones included; medians are beside it. What N
GPUs do as a share of N times what one does goes into figures.json, as `scale.stageN.two_gpus` and
so on, and the batches a second with it, as soon as they are known (`--figures FILE`: elsewhere;
`--tiny`: nowhere else). A run that fails, or hangs for longer than its limit, loses its own row
alone. `--tiny` takes processes on a CPU, to try this script.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from animate124.host.argument_types import positive_float, positive_int
from animate124.pipeline.request import FIELDS, GRID
from measuring import FIGURES, record

STEP = Path(__file__).resolve().parent / "step.py"
NUMBERS = {1: "one_gpu", 2: "two_gpus", 4: "four_gpus", 8: "eight_gpus"}
Rates = dict[int, tuple[float, float]]  # GPUs -> batches a second, median ms of a usual step


def measure(stage: int, devices: int, args: argparse.Namespace, file: Path) -> tuple[float, float]:
    """Batches a second, and the median ms of a usual step.

    Raises:
        CalledProcessError, TimeoutExpired: it failed, or took too long.
    """
    command = [sys.executable, str(STEP), "--stage", str(stage), "--devices", str(devices)]
    command += ["--field", args.field, "--compile", args.compile, "--figures", str(file)]
    command += ["--warm-up", str(args.warm_up), "--steps", str(args.steps), "--split-steps", "0"]
    command += ["--tiny"] * args.tiny + args.overrides
    # what a killed one leaves behind goes with the file's folder
    own = {**os.environ, "TMPDIR": str(file.parent)}
    # a session of its own, since DDP's other processes are its children
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, env=own
    ) as run:
        try:
            code = run.wait(args.limit)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of them have ended
                os.killpg(run.pid, signal.SIGKILL)
    if code:
        raise subprocess.CalledProcessError(code, command)
    parts = {k.rpartition("/")[2]: v["value"] for k, v in json.loads(file.read_text()).items()}
    usual = next(v for k, v in parts.items() if k in ("image batch", "usual clip"))
    return parts["batches"], usual


def figures_of(step: str, rates: Rates) -> dict[str, tuple[float, str]]:
    """Names, values and units; step: as stages.which names it."""
    figures = {}
    for devices, (rate, _) in rates.items():
        name = f"scale.{step}.{NUMBERS[devices]}"
        figures[f"{name}.batches"] = rate, "a second"
        if devices > 1 and 1 in rates:
            figures[name] = rate / (devices * rates[1][0]), f"of {devices} times one GPU's batches"
    return figures


def name_of(stage: int, field: str) -> str:
    """Of a stage in figures: the published method's has its own, but for stage 1, which is one."""
    return f"{GRID}.stage{stage}" if field == GRID and stage > 1 else f"stage{stage}"


def say(stage: int, devices: int, rates: Rates, seconds: float) -> None:
    """A line; seconds: that measuring took."""
    rate, usual = rates[devices]
    share = ""
    if devices > 1 and 1 in rates:
        share = f", {rate / (devices * rates[1][0]):.1%} of {devices} times one"
    print(
        f"stage {stage}, {devices}: {rate:.2f} batches a second{share} "
        f"(median step {usual:.1f} ms; measured in {seconds:.0f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stages", type=int, nargs="+", choices=[1, 2, 3], default=[1, 2, 3])
    parser.add_argument("--devices", type=int, nargs="+", choices=[*NUMBERS], default=[1, 2])
    parser.add_argument("--field", choices=FIELDS, default=FIELDS[0], help="as animate.py's")
    parser.add_argument("--compile", choices=["false", "graph", "inductor"], default="graph")
    parser.add_argument("--warm-up", type=positive_int, default=16, help="steps before measuring")
    parser.add_argument("--steps", type=positive_int, default=60, help="steps that are measured")
    parser.add_argument(
        "--limit", type=positive_float, default=600, help="seconds that a run may take"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models and pictures")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    args = parser.parse_args()

    file = args.figures or (None if args.tiny else FIGURES)
    failed = False
    for stage in args.stages:
        rates: Rates = {}
        for devices in args.devices:
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    rates[devices] = measure(stage, devices, args, Path(folder) / "step.json")
                except subprocess.SubprocessError as error:
                    print(f"stage {stage}, {devices}: failed ({error})", flush=True)
                    failed = True
                    continue
            say(stage, devices, rates, time.perf_counter() - began)
            if file:
                record(figures_of(name_of(stage, args.field), rates), file.resolve())
    sys.exit(failed)


if __name__ == "__main__":
    main()
