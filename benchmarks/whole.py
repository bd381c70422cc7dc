"""animate.py from a photo to the result with full-size models, beside another checkout's.

    python benchmarks/whole.py [--beside PATH [--at-once | --kept FILE]] [--vram GB]
        [--steps-share 0.02] [--models FOLDER] [--tiny] [stageN.key=value ...]

The models have random weights and lie in a local folder that this script writes (9 GB; --models
keeps it). Each task's wall time, a step, GPU and host memory, and the original's time for its own
numbers of steps, which are the YAMLs' and which the other checkout is reckoned with, too. With
--steps-share below 1 each training takes that share of its steps, and the rest is reckoned: steps
that are left times the length of one, over the later half of those that ran, without recordings and
checkpoints. What grows with training is not in it: checkpoints (half a second every 500 steps) and
validations on the way, and samples, which are most in the beginning. A training that told of its
steps but once has no later ones: of the other checkout's it counts as it ran ("at least"), of ours
it is an error.
--fast, a quarter of the steps, is reckoned likewise. --vram is animate.py's, for this checkout
alone. --at-once takes a GPU for each checkout. With --kept (and --models, so that the models stay
where they are) a run that was stopped goes on behind the checkout that is done. --tiny tries it on
a CPU.
"""

import math
import os
import tempfile
from pathlib import Path
from typing import Any

# before torch is loaded, as launch.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import full_size_models
import torch
from animate124.host.argument_types import finite_number, positive_float
from animate124.pipeline.presets import FAST, Preset, Stage, preset_of
from animate124.pipeline.request import FIELDS, Request
from animate124.toyworld.random_priors import make_random_priors
from measuring import FIGURES, device_name, record
from omegaconf import OmegaConf
from runs import ROOT, Run, at_once, in_turn, median, options
from stages import SECTION, TINY, TINY_SIZES
from step import ORIGINAL

MODEL = "pretrained_model_name_or_path"
MODELS = {  # of a stage's system -> the folder
    f"guidance.{MODEL}": {1: "sd", 2: "text-to-video", 3: "text-to-video"},
    f"guidance_3d.{MODEL}": dict.fromkeys((1, 2, 3), "zero123"),
    f"guidance_cn.{MODEL}": {3: "sd"},
    "guidance_cn.controlnet_name_or_path": {3: "controlnet-tile"},
}
PRESET, PUBLISHED = (  # animate.py's default, and the published method's stages
    preset_of(Request(Path("a"), "a", preset="modelscope", field=field)) for field in FIELDS
)
SMALL = [
    "--gpu=cpu",
    "preprocess.size=64",
    "token.resolution=64",
    "token.num_validation_images=0",
    "token.train_batch_size=2",
    "result.size=16",
    "result.frames=2",
    "assets.faces=200",
    "assets.texture=32",
    "assets.resolution=16",
]


def steps_of(share: float, preset: Preset = PRESET) -> dict[str, int]:
    """Of a preset's trainings, or a share of them."""
    steps = {"token": preset.flags["token"]["max_train_steps"]}
    steps |= {row.name: row.steps or config_of(row).trainer.max_steps for row in preset.stages}
    return {name: max(4, round(share * count)) for name, count in steps.items()}


def config_of(row: Stage) -> Any:
    return OmegaConf.load(ROOT / row.config)


def words(models: Path, steps: dict[str, int], tiny: bool) -> list[str]:
    """animate.py's: the models, and so many steps of each training."""
    found = [f"token.max_train_steps={steps['token']}"]
    for n, row in enumerate(PRESET.stages, start=1):
        config = config_of(row)
        interval = min(steps[row.name], config.trainer.val_check_interval)
        given = [f"trainer.max_steps={steps[row.name]}", f"trainer.val_check_interval={interval}"]
        given += [f"system.{key}={models / of[n]}" for key, of in MODELS.items() if n in of]
        given += [*TINY, *TINY_SIZES[n]] if tiny else []
        has = set(config.system)  # not every stage asks Zero123
        found += [f"{row.name}.{word}" for word in given if has.issuperset(SECTION.findall(word))]
    return [*found, *(SMALL if tiny else [])]


def reckoned(run: Run, whole: dict[str, int]) -> float:
    """Seconds of a run that would train so many steps; at least, where a step's aren't known."""
    known = {name: task for name, task in run.trained.items() if name not in unknown(run)}
    more = ((whole[name] - task.steps[-1][1]) * task.step_s for name, task in known.items())
    return run.seconds + sum(more)


def unknown(run: Run) -> list[str]:
    """Trainings whose steps' length isn't known."""
    return [name for name, task in run.trained.items() if math.isnan(task.step_s)]


def say(label: str, run: Run, whole: dict[str, int]) -> None:
    """A run's tasks, and what the whole would take."""
    print(f"\n{label}: {run.seconds:.1f} s as it ran")
    for name, task in run.tasks.items():
        peaks = ", ".join(f"{gb:.2f} GB {kind}" for kind, gb in task.peak.items())
        line = f"  {name}: {task.seconds:.1f} s; {peaks}"
        if name in run.trained:
            each = "" if name in unknown(run) else f"{1e3 * task.step_s:.1f} ms each, "
            line += f"; {task.steps[-1][1]} steps of {whole[name]}, {each}"
            line += f"the first told after {task.to_first_step:.1f} s"
        print(line)
    bound = f"at least, as {', '.join(unknown(run))} told of its steps but once: "
    minutes = reckoned(run, whole) / 60
    print(f"  with all steps: {bound if unknown(run) else ''}{minutes:.1f} minutes", flush=True)


def figures_of(ours: list[Run], theirs: list[Run], how: str) -> dict[str, tuple[float, str]]:
    """Names, values and units."""
    whole, published = steps_of(1), steps_of(1, PUBLISHED)
    fast = {name: count // FAST for name, count in whole.items()}
    peaks = [task.peak["gpu"] for run in ours for task in run.tasks.values() if "gpu" in task.peak]
    figures = {
        "whole.minutes": (median(ours, lambda run: reckoned(run, whole)) / 60, f"min, {how}"),
        "whole.fast_minutes": (median(ours, lambda run: reckoned(run, fast)) / 60, "min, reckoned"),
    }
    if theirs:
        before = median(theirs, lambda run: reckoned(run, published)) / 60
        bound = ", at least" if any(map(unknown, theirs)) else ""
        figures["whole.minutes_before"] = before, f"min, {how}, the other build{bound}"
    if peaks:
        figures["whole.peak_gb"] = max(peaks), "GB"
    figures |= figures_of_tasks("whole", ours)
    return figures | (figures_of_tasks("whole.before", theirs) if theirs else {})


def figures_of_tasks(place: str, runs: list[Run]) -> dict[str, tuple[float, str]]:
    """Medians of runs of one checkout; peaks are the first run's."""
    figures = {f"{place}.to_first_task_seconds": (median(runs, to_first_task), "s")}
    for name, task in runs[0].tasks.items():
        own = f"{place}.{name}"
        figures[f"{own}.seconds"] = median(runs, lambda run, n=name: run.tasks[n].seconds), "s"
        figures |= {f"{own}.{kind}_gb": (gb, "GB") for kind, gb in task.peak.items()}
        if name in runs[0].trained and name not in unknown(runs[0]):
            step = median(runs, lambda run, n=name: run.tasks[n].step_s)
            figures[f"{own}.ms"] = 1e3 * step, "ms a step"
            first = median(runs, lambda run, n=name: run.tasks[n].to_first_step)
            figures[f"{own}.first_seconds"] = first, "s to the first step"
    return figures


def to_first_task(run: Run) -> float:
    """Seconds from animate.py's start."""
    return min(task.began for task in run.tasks.values())


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument(
        "--steps-share",
        type=finite_number(above=0, most=1),
        default=1.0,
        help="of each training's steps",
    )
    parser.add_argument(
        "--vram",
        type=positive_float,
        metavar="GB",
        help="as animate.py's; not the other checkout's",
    )
    parser.add_argument("--at-once", action="store_true", help="the other checkout on a second GPU")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="of runs that are done")
    parser.add_argument("--models", type=Path, help="folder of the models, written if it is empty")
    parser.add_argument("--tiny", action="store_true", help="tiny models and pictures")
    args = parser.parse_args()
    if args.at_once and (args.beside is None or args.repeats > 1 or args.kept):
        parser.error("--at-once is a run of this checkout and one of --beside PATH, none --kept")
    if args.kept and not args.models:
        parser.error("--kept knows its runs by their words: it needs --models, too")
    whole, ran, published = steps_of(1), steps_of(args.steps_share), steps_of(1, PUBLISHED)
    with tempfile.TemporaryDirectory() as folder:
        models = (args.models or Path(folder) / "models").absolute()
        if args.tiny:
            make_random_priors(models)
        elif not (models / "sd").is_dir():
            full_size_models.write(models, "cuda" if torch.cuda.is_available() else "cpu")
            torch.cuda.empty_cache()
        given = [*words(models, ran, args.tiny), *args.overrides]
        own = [] if args.vram is None else ["--vram", f"{args.vram:g}"]
        if args.at_once:
            ours, theirs = at_once(args.beside, Path(folder), given, own)
        else:
            ours, theirs = in_turn(args.beside, Path(folder), given, args.repeats, own, args.kept)
    print(f"{device_name()}, torch {torch.__version__}, share of the steps: {args.steps_share:g}")
    for run in theirs:
        say("beside", run, published)
    for run in ours:
        say("ours", run, whole)
        if unknown(run):
            raise SystemExit("Too few steps to know how long one is: try a larger --steps-share.")
    original = sum(ORIGINAL[n, "blob"][0][0] * published[f"stage{n}"] for n in (1, 2, 3)) / 60e3
    print(f"\nthe original's three stages, an H200's milliseconds a step: {original:.0f} minutes")
    figures = figures_of(ours, theirs, "reckoned" if args.steps_share < 1 else "measured")
    for name, (value, unit) in figures.items():
        print(f"{name}: {value:.3g} {unit}")
    if not args.tiny or args.figures != FIGURES:
        record(figures, args.figures)


if __name__ == "__main__":
    main()
