"""Runs the pipeline on a rendered character and holds the result against ground truth.

    python -m animate124.evaluation.suite --species fox --motion jump --seed 10001
    python -m animate124.evaluation.suite --suite --jobs 4 # writes benchmarks/toyworld.md

A run is animate.py's with the toy preset, from the character's cut-out on, and prints one JSON
line. measures.py says what its figures are; `seconds` are those of each task.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..pipeline.manifest import Manifest
from ..pipeline.overrides import by_task
from ..pipeline.process import Interrupt
from ..pipeline.request import Request
from ..pipeline.run import run_request
from ..system.trained import Scene, load_scene
from ..toyworld.banks import HELD_OUT
from ..toyworld.characters import SPECIES
from ..toyworld.measures import write_sheet
from ..toyworld.motions import MOTIONS
from ..toyworld.subject import write_subject
from .measures import CLASSIFIER, looks, moves, stills
from .sheet import faces
from .truth import Subject

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "figures.json"  # in the folder of a subject that the suite is done with
STAGES = ("stage1", "stage2", "stage3")
FULL_SIZES = ("image.width", "image.height", "single_view.width", "single_view.height")
BUDGETS: dict[str, list[str]] = {  # overrides of the quickstart
    "laptop": [],
    "full": [  # pictures twice as fine, a grid of up to 137 cells, more steps
        *(f"{stage}.data.{key}=64" for stage in STAGES for key in FULL_SIZES),
        *(f"{stage}.system.geometry.pos_encoding_config.n_levels=8" for stage in STAGES),
        *(f"{stage}.system.speed.compile=graph" for stage in STAGES),
        "stage1.trainer.max_steps=1000",
        "stage2.trainer.max_steps=500",
        "stage3.trainer.max_steps=300",
    ],
}
# nothing but training: no pictures on the way
QUIET = [f"{stage}.trainer.limit_{kind}_batches=0" for stage in STAGES for kind in ("val", "test")]
# seeds from HELD_OUT on have never been seen by a prior; development stays below this one
SUITE_SEED = HELD_OUT + 5000
SUITE = [
    (species, motion, SUITE_SEED + i)
    for i, (species, motion) in enumerate(
        zip(
            SPECIES, ("dance", "jump", "wave", "spin", "walk", "dance", "jump", "wave"), strict=True
        )
    )
]


class Run:
    """A finished run of the pipeline up to a stage."""

    def __init__(self, subject: Subject, out: Path, until: str, overrides: Sequence[str]) -> None:
        picture = write_subject(out / "subject", subject.species, seed=subject.seed)["cut-out"]
        words = ["preprocess.dont_recenter=true", "result.size=64", *QUIET, *overrides]
        asked = {"preset": "toy", "until": until, "overrides": by_task(words)}
        request = Request(picture, subject.prompt, out=out, **asked)
        with Interrupt() as interrupt:
            code = run_request(request, sys.argv, interrupt)
        if code != 0:
            raise KeyboardInterrupt
        self.folder = request.folder
        self.stages = STAGES[: STAGES.index(until) + 1]

    def seconds(self) -> dict[str, float]:
        return {k: round(v["seconds"], 1) for k, v in Manifest(self.folder).records.items()}

    def scene(self, stage: str) -> Scene:
        folder = self.folder / stage
        return load_scene(folder / "configs" / "parsed.yaml", folder / "ckpts" / "last.ckpt")


def evaluate(
    subject: Subject, out: Path, until: str, overrides: Sequence[str], ablation: bool = True
) -> dict:
    """A run's figures (the module's docstring names them); pictures and trials stay in `out`."""
    run = Run(subject, out, until, overrides)
    scenes = [run.scene(stage) for stage in run.stages]
    figures = stills(subject, scenes[-1])
    if until != "stage1":
        figures |= moves(subject, scenes[1:]) | looks(subject, scenes[-1])
    write_sheet(out / "sheet.png", faces(subject, scenes[-1]))
    if ablation:
        off = [*overrides, *(f"{stage}.system.loss.lambda_3d_sd=0" for stage in STAGES)]
        blind = Run(subject, out / "without_3d_prior", until, off).scene(until)
        figures["novel_view_psnr_without_3d_prior"] = stills(subject, blind)["novel_view_psnr"]
    return {**dataclasses.asdict(subject), **figures, "seconds": run.seconds()}


def run_suite(jobs: int, words: Sequence[str], out: Path) -> list[dict]:
    """Every subject of SUITE in a process of its own, `jobs` at a time; those done before stay."""

    def one(case: tuple[str, str, int]) -> dict:
        species, motion, seed = case
        found = out / species / FIGURES
        if found.exists():  # by a suite that was cut off
            done = json.loads(found.read_text())
            if done["words"] == list(words):
                return done["figures"]
        command = [sys.executable, "-m", "animate124.evaluation.suite", "--species", species]
        command += ["--motion", motion, "--seed", str(seed), "--out", str(out / species), *words]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(run.stdout.splitlines()[-1])
        found.write_text(json.dumps({"words": list(words), "figures": figures}))
        return figures

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(tqdm(pool.map(one, SUITE), total=len(SUITE), desc="suite"))


def mean(rows: Sequence[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line a subject, and their mean."""
    names = ["reference_psnr", "novel_view_psnr", "novel_view_psnr_without_3d_prior"]
    names += ["motion_energy_ratio", "motion_kept", "temporal_jitter"]
    short = ["reference", "novel views", "without 3D prior", "motion energy", "kept", "jitter"]
    lines = [
        f"| subject | {' | '.join(short)} | drift, stage 2 -> 3 | named as | minutes |",
        "|---" * (len(short) + 4) + "|",
    ]
    for row in rows:
        numbers = " | ".join(f"{row[name]:.2f}" for name in names)
        before, after = row["identity_drift"]
        minutes = sum(row["seconds"].values()) / 60
        lines.append(
            f"| {row['species']} {row['seed']}, {row['motion']} | {numbers} | "
            f"{before:.3f} -> {after:.3f} | {row['named']} {row['motion_score']:.2f} | "
            f"{minutes:.1f} |"
        )
    numbers = " | ".join(f"{mean(rows, name):.2f}" for name in names)
    drift = [sum(row["identity_drift"][k] for row in rows) / len(rows) for k in (0, 1)]
    right = sum(row["named"] == row["motion"] for row in rows)
    lines.append(
        f"| **mean** | {numbers} | {drift[0]:.3f} -> {drift[1]:.3f} | {right} of {len(rows)} | |"
    )
    return "\n".join(lines)


def write_table(path: Path, budget: str, rows: Sequence[dict]) -> None:
    """Puts the table under its budget's heading; what stands there before goes."""
    text = path.read_text() if path.exists() else ""
    heading = f"## Budget {budget}\n"
    before, _, rest = text.partition(heading)
    _, mark, after = rest.partition("\n## ")
    path.write_text(f"{before}{heading}\n{table(rows)}\n{mark}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--species", choices=SPECIES, default="panda")
    parser.add_argument("--motion", choices=MOTIONS, default="dance")
    parser.add_argument("--seed", type=int, default=HELD_OUT, help="the individual's number")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=3, help="the last to run")
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--no-ablation", action="store_true", help="no run without the 3D prior")
    parser.add_argument(
        "--out", type=Path, help="keeps pictures and trials here; a suite cut off goes on from it"
    )
    parser.add_argument("--suite", action="store_true", help="8 subjects; benchmarks/toyworld.md")
    parser.add_argument("--jobs", type=int, default=1, help="of the suite, side by side")
    parser.add_argument("overrides", nargs="*", help="stage2.trainer.max_steps=100 ...")
    args = parser.parse_args(arguments)
    out = args.out or Path(tempfile.mkdtemp(prefix="toyworld-"))
    try:
        if args.suite:
            words = ["--budget", args.budget, "--stage", "3", *args.overrides]
            rows = run_suite(args.jobs, words, out)
            write_table(ROOT / "benchmarks" / "toyworld.md", args.budget, rows)
            print(table(rows))
            return
        subject = Subject(args.species, args.motion, args.seed)
        overrides = [*BUDGETS[args.budget], *args.overrides]
        found = evaluate(subject, out, STAGES[args.stage - 1], overrides, not args.no_ablation)
        accuracy = json.loads((CLASSIFIER / "config.json").read_text())["accuracy"]
        print(json.dumps({**found, "classifier_accuracy": accuracy}), flush=True)
    finally:
        if args.out is None:
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
