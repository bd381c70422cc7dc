"""Milliseconds, memory and the split of one training step, with full-size random models.

python benchmarks/step.py --stage 2 [--field deformation|grid] [--scene blob|sharp] [--video ms|zs]
    [--compile graph|inductor] [--baseline] [--beside-grid] [--beside PATH] [--devices 2]
    [--memory-fraction-gb 12] [--toy] [--tiny] [--figures FILE] [key=value ...]

The stage's own config runs under Lightning as launch.py runs it, at 16-mixed, on the data module's
batches; learning rates are 0 so that the scene stays what it is ("blob": what training starts from;
"sharp": as sharp as a trained one). Times are those between the starts of two steps. The split is
measured in steps of its own. `--toy` takes the quickstart's config and shipped priors instead, from
the blob: what a laptop does. `--tiny` takes tiny models and pictures, to try this script on a CPU.
With `--devices` above 1 a step is DDP's: a batch a device, gradients averaged; what is printed is
the first device's. GB are 10^9 bytes. `key=value` overrides the config. `--beside-grid` measures
the same step of the published method first, in a process of its own, and says the ratio; `--beside`
that of another checkout. Medians and the peak go into figures.json (`--figures FILE`: elsewhere;
`--tiny`: nowhere else).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# before torch is loaded, as launch.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import pytorch_lightning as pl
import torch
from animate124.host.argument_types import positive_float, positive_int
from animate124.pipeline.request import GRID
from measuring import FIGURES, cap_memory, device_name, record
from probes import KINDS, PRIORS, Watch
from stages import ROOT, step_options, train, which
from threestudio.launch import leave_process_group

Figures = dict[str, tuple[float, str]]  # name -> value and unit
# An H200's figures of the original (facts of the public code, the same models and settings):
# (stage, scene): ms of a step in a usual clip and in one that starts from zero, peak GB, millions
# of samples kept and marched in these two, rays hit
ORIGINAL = {
    (1, "blob"): ((207, None), 9.5, ((0.589, 0.651), None), 0.325),
    (1, "sharp"): ((147, None), 8.1, ((0.234, 0.441), None), 0.246),
    (2, "blob"): ((903, 962), 42.2, ((4.72, 5.22), (5.31, 5.87)), 0.326),
    (2, "sharp"): ((549, 619), 25.6, ((1.88, None), (2.12, None)), 0.247),
    (3, "blob"): ((1293, 1380), 59.1, ((4.71, 5.18), (5.30, 5.83)), 0.326),
    (3, "sharp"): ((888, 956), 42.6, ((1.88, None), (2.12, None)), 0.247),
}


def weights_gb(system: pl.LightningModule) -> float:
    """The priors' frozen networks."""
    networks = []
    for name in PRIORS:
        prior = getattr(system, name, None)
        networks += [] if prior is None else [prior.vae, *prior.networks]
    return sum(p.numel() * p.element_size() for m in networks for p in m.parameters()) / 1e9


def name_of(kind: str, stage: int) -> str:
    if stage == 1:
        return "image batch"
    return {"usual": "usual clip", "start": "clip from time zero"}[kind]


def beside(value: float, original: float | None, form: Callable[[float], str]) -> str:
    """Our figure, and the original's."""
    if original is None:
        return form(value)
    return f"{form(value)} (original {form(original)}, {value / original - 1:+.1%})"


def key_of(args: argparse.Namespace) -> str:
    """How the names of a step's figures begin."""
    devices = "" if args.devices == 1 else f"-{args.devices}-devices"
    return f"step/{which(args)}-{args.scene}-{args.video}-{args.compile}{devices}"


def is_published(args: argparse.Namespace) -> bool:
    """Whether it is the step that the README tells of: `step.stageN` in the names of figures."""
    default = args.stage == 1 or args.field != GRID
    usual = (args.scene, args.video, args.compile, args.devices) == ("blob", "ms", "graph", 1)
    return usual and default and not (args.toy or args.overrides or args.memory_fraction_gb)


def measure(folder: Path, checkout: Path, *more: str) -> Figures:
    """The same step by a checkout's script, in a process of its own, with further options."""
    file, packages = folder / "beside.json", folder / "packages"
    packages.mkdir()
    (packages / "animate124").symlink_to(checkout.resolve())
    places = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    script, words = checkout.resolve() / "benchmarks" / "step.py", own_words(sys.argv[1:])
    command = [sys.executable, str(script), *words, *more, "--figures", str(file)]
    environment = {"COMMIT": "beside", **os.environ, "PYTHONPATH": os.pathsep.join(places)}
    subprocess.run(command, check=True, env=environment)
    held = json.loads(file.read_text())
    return {name: (figure["value"], figure["unit"]) for name, figure in held.items()}


def own_words(words: list[str]) -> list[str]:
    """The command line without what it is to be measured beside."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--beside-grid", action="store_true")
    parser.add_argument("--beside")
    return parser.parse_known_args(words)[1]


def compare(args: argparse.Namespace, ours: Figures, theirs: Figures, what: str) -> float:
    """Prints our figures' ratios to another step's; returns that of a usual step."""
    ratios = {}
    for name, (value, unit) in theirs.items():
        place, _, part = name.rpartition("/")
        if place:  # and not one of the published names
            ratios[part] = ours[f"{key_of(args)}/{part}"][0] / value
            print(f"{part}: {ratios[part]:.3f} of the {value:.4g} {unit} {what}")
    return ratios[name_of("usual", args.stage)]


def report(args: argparse.Namespace, watch: Watch, system: pl.LightningModule) -> Figures:
    """Prints it all; the medians and the peak, with their units."""
    nothing = ((None, None), None, (None, None), None)
    known = args.baseline and not args.tiny and not args.toy and args.video == "ms"
    known = known and (args.field == GRID or args.stage == 1)
    times, peak, samples, hit = ORIGINAL[args.stage, args.scene] if known else nothing
    print(
        f"\n{'toy ' * args.toy}stage {args.stage}, field {args.field}, {args.scene}, video "
        f"{args.video}, compile {args.compile}, {device_name()}, "
        f"torch {torch.__version__} {' '.join(args.overrides)}"
    )
    key, peak_gb = key_of(args), watch.peak["allocated"]
    figures: Figures = {f"{key}/peak": (peak_gb, "GB")} if peak_gb else {}  # none on a CPU
    for i, kind in enumerate(KINDS):
        ms = watch.times(kind)
        if ms:
            median = beside(statistics.median(ms), times[i], "{:.1f}".format)
            name = name_of(kind, args.stage)
            print(f"{name}: {median} ms, {min(ms):.1f} to {max(ms):.1f} of {len(ms)} steps")
            figures[f"{key}/{name}"] = statistics.median(ms), "ms"
    mean = statistics.mean(ms for kind in KINDS for ms in watch.times(kind))
    rate = 1e3 * args.devices / mean
    print(f"devices: {args.devices}, batches a second: {rate:.2f}")
    figures[f"{key}/batches"] = rate, "a second, over all steps"
    print(
        f"peak {beside(watch.peak['allocated'], peak, '{:.2f}'.format)} GB allocated, "
        f"{watch.peak['reserved']:.2f} GB reserved; weights {weights_gb(system):.2f} GB"
    )
    report_split(args, watch, samples, hit)
    usual = figures.get(f"{key}/{name_of('usual', args.stage)}")
    if usual and is_published(args):
        figures[f"step.stage{args.stage}.ms"] = usual
    if watch.syncs:
        where = ", ".join(f"{place} {n}" for place, n in watch.syncs.most_common())
        print(f"waits of the CPU for the GPU in one step: {watch.syncs.total()} ({where})")
    return figures


def report_split(args: argparse.Namespace, watch: Watch, samples: tuple, hit: float | None) -> None:
    """Milliseconds of each part, of usual clips and of those from time zero; beside the original's
    samples and rays.
    """
    split_kinds = watch.kinds[watch.split : watch.last]
    for i, kind in enumerate(KINDS):
        rows = [k for k, found in enumerate(split_kinds) if found == kind]
        if not rows:
            continue
        kept, marched = (
            statistics.mean(watch.probes.counts[k][name] for k in rows) / 1e6
            for name in ("kept", "marched")
        )
        before = samples[i] or (None, None)
        rays = [watch.probes.counts[k] for k in rows]
        share = sum(c["hit"] for c in rays) / sum(c["rays"] for c in rays)
        print(
            f"{name_of(kind, args.stage)}: "
            f"{beside(kept, before[0], '{:.3f}'.format)} M samples kept, "
            f"{beside(marched, before[1], '{:.3f}'.format)} M marched, "
            f"{beside(share, hit, '{:.1%}'.format)} of the rays hit; split in ms:"
        )
        labels = dict.fromkeys(label for k in rows for label in watch.probes.steps[k])
        for label in labels:
            values = [watch.probes.steps[k].get(label, 0.0) for k in rows]
            print(f"  {label:30}{statistics.median(values):9.1f}")


def measure_beside(args: argparse.Namespace) -> tuple[Figures | None, Figures | None]:
    """The same step of the published method, and of another checkout, where they are asked for."""
    found: list[Figures | None] = []
    for asked, checkout, more in (
        (args.beside_grid, ROOT, ("--field", GRID)),
        (args.beside, args.beside, ()),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            found.append(measure(Path(temporary), checkout, *more) if asked else None)
    return found[0], found[1]


def main() -> None:
    parser = step_options(__doc__.splitlines()[0])
    parser.add_argument(
        "--baseline", action="store_true", help="the original's figures beside ours"
    )
    parser.add_argument(
        "--beside-grid", action="store_true", help="measure the published method's step first"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="PATH", help="measure another checkout's step first"
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="where figures are written")
    parser.add_argument(
        "--devices", type=positive_int, default=1, help="GPUs, or processes on a CPU"
    )
    parser.add_argument(
        "--memory-fraction-gb", type=positive_float, help="let CUDA have no more than this"
    )
    parser.add_argument("--steps", type=positive_int, default=30, help="steps that are measured")
    parser.add_argument("--split-steps", type=int, default=6, help="steps that are split")
    args = parser.parse_args()

    file = args.figures or (None if args.tiny else FIGURES)
    file = file and file.resolve()
    if (args.beside_grid or args.beside) and args.devices > 1:
        parser.error("--beside-grid and --beside are for one device")
    if not (args.tiny or args.toy or torch.cuda.is_available()):
        parser.error("models of the published size want a GPU; --tiny or --toy is for a CPU")
    grid, before = measure_beside(args)
    cap_memory(args.memory_fraction_gb)
    watch = Watch(args.warm_up, args.steps, args.split_steps)
    with tempfile.TemporaryDirectory() as temporary:
        trainer = train(args, Path(temporary), watch, watch.last + 1, args.devices)
        leave_process_group()
        if trainer.is_global_zero:
            figures = report(args, watch, trainer.lightning_module)
            key = f"step.stage{args.stage}"
            if grid is not None:
                ratio = compare(args, figures, grid, f"with --field {GRID}")
                figures = grid | figures
                if not args.toy and (args.scene, args.video) == ("blob", "ms"):
                    figures[f"{key}.ratio_to_grid"] = ratio, f"of the ms with --field {GRID}"
            if before is not None:
                ratio = compare(args, figures, before, f"of {args.beside}")
                figures[f"{key}.ratio_to_before"] = ratio, "of the ms of the checkout beside it"
            if file:
                record(figures, file)


if __name__ == "__main__":
    main()
