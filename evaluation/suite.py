"""Runs the pipeline on rendered characters and holds the results against ground truth.

    python -m animate124.evaluation.suite --species fox --motion jump --seed 10001
    python -m animate124.evaluation.suite --suite --jobs 4

A run is animate.py's with the toy preset, from the character's cut-out on, and prints one JSON
line. measures.py says what its figures are; `seconds` are those of each task. A suite runs every
field (`--field`) on the same eight characters; its table goes into benchmarks/toyworld.md and its
means into benchmarks/figures.json (those of another `--preset` stand beside the toy's). With `--out
FOLDER` each subject's sheet and figures stay in FOLDER/<field>/<species>, and what is there isn't
run again: so the table of a suite that ran on another machine is made of its folder, by the same
command.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..files.figures import commit, device_name
from ..files.json_files import read_json
from ..pipeline.fork_server import forks
from ..pipeline.manifest import Manifest
from ..pipeline.overrides import by_task
from ..pipeline.process import Interrupt, Start, execute
from ..pipeline.request import FIELDS, OFFLINE, Request
from ..pipeline.run import run_request
from ..system.trained import Scene, load_scene
from ..toyworld.banks import HELD_OUT
from ..toyworld.characters import SPECIES
from ..toyworld.measures import write_sheet
from ..toyworld.motions import MOTIONS
from ..toyworld.subject import write_subject
from .likeness import NETWORK
from .measures import CLASSIFIER, looks, moves, stills
from .sheet import faces
from .tables import table, write_figures, write_table
from .truth import Subject

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FIGURES = "figures.json"  # in the folder of a subject that the suite is done with
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
STAGES = ("stage1", "stage2", "stage3")
TOY = OFFLINE[0]
FULL_SIZES = ("image.width", "image.height", "single_view.width", "single_view.height")
DISTILLED = (  # as --field grid has it
    "system.guidance.denoising_steps=0",
    "system.guidance.target_uses=1",
    "system.guidance.min_step_percent=0.3",
    "system.guidance.max_step_percent=0.98",
    "system.loss.lambda_sds_video=1.0",
    "data.single_view.n_clips=0",
)
BUDGETS: dict[str, list[str]] = {  # overrides of the quickstart
    "laptop": [],
    "full": [  # pictures twice as fine, a grid of up to 137 cells, more steps, of distillation
        *(f"{stage}.data.{key}=64" for stage in STAGES for key in FULL_SIZES),
        *(f"{stage}.system.geometry.pos_encoding_config.n_levels=8" for stage in STAGES),
        *(f"{stage}.system.speed.compile=graph" for stage in STAGES),
        "stage1.trainer.max_steps=1000",
        "stage2.trainer.max_steps=500",
        "stage3.trainer.max_steps=300",
        *(f"stage2.{setting}" for setting in DISTILLED),
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

    def __init__(
        self,
        subject: Subject,
        field: str,
        out: Path,
        until: str,
        overrides: Sequence[str],
        start: Start,
        preset: str,
    ) -> None:
        picture = write_subject(out / "subject", subject.species, seed=subject.seed)["cut-out"]
        words = ["preprocess.dont_recenter=true", "result.size=64", *QUIET, *overrides]
        request = Request(
            picture,
            subject.prompt,
            subject=subject.species,
            preset=preset,
            field=field,
            until="result" if until == STAGES[-1] else until,  # assets aren't looked at
            out=out,
            overrides=by_task(words),
        )
        with Interrupt() as interrupt:
            code = run_request(request, sys.argv, interrupt, start=start)
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
    subject: Subject,
    field: str,
    out: Path,
    until: str,
    overrides: Sequence[str],
    ablation: bool = True,
    start: Start = execute,
    preset: str = TOY,
) -> dict:
    """A run's figures (the module's docstring names them); pictures and trials stay in `out`.

    start: what makes the tasks' processes.
    """
    where = {"field": field, "device": device_name(), "commit": commit()}
    run = Run(subject, field, out, until, overrides, start, preset)
    scenes = [run.scene(stage) for stage in run.stages]
    figures = stills(subject, scenes[-1])
    if until != "stage1":
        figures |= moves(subject, scenes[1:]) | looks(subject, scenes[-1])
    write_sheet(out / "sheet.png", faces(subject, scenes[-1]))
    if ablation:
        off = [*overrides, *(f"{stage}.system.loss.lambda_3d_sd=0" for stage in STAGES)]
        folder = out / "without_3d_prior"
        blind = Run(subject, field, folder, until, off, start, preset).scene(until)
        figures["novel_view_psnr_without_3d_prior"] = stills(subject, blind)["novel_view_psnr"]
    return {**dataclasses.asdict(subject), **where, **figures, "seconds": run.seconds()}


def run_suite(jobs: int, words: Sequence[str], fields: Sequence[str], out: Path) -> list[dict]:
    """Every subject of SUITE in each of the fields, in a process of its own and `jobs` at a time;
    those done before stay.

    Raises:
        subprocess.CalledProcessError: one failed; the others are done all the same.
    """

    def one(case: tuple[str, tuple[str, str, int]]) -> dict:
        field, (species, motion, seed) = case
        folder = out / field / species
        found = folder / FIGURES
        if found.exists():  # by a suite that was cut off, or by one on another machine
            done = json.loads(found.read_text())
            if done["words"] == list(words):
                return done["figures"]
        command = [sys.executable, "-m", "animate124.evaluation.suite", "--species", species]
        command += ["--motion", motion, "--seed", str(seed), "--field", field]
        command += ["--out", str(folder), *words]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(run.stdout.splitlines()[-1])
        found.write_text(json.dumps({"words": list(words), "figures": figures}))
        return figures

    cases = [(field, case) for field in fields for case in SUITE]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        asked = [pool.submit(one, case) for case in cases]
        try:
            for _ in tqdm(concurrent.futures.as_completed(asked), total=len(cases), desc="suite"):
                pass
        except KeyboardInterrupt:  # it has stopped those that run
            for each in asked:
                each.cancel()
            raise
    return [each.result() for each in asked]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--species", choices=SPECIES, default="panda")
    p.add_argument("--motion", choices=MOTIONS, default="dance")
    p.add_argument("--seed", type=int, default=HELD_OUT, help="the individual's number")
    p.add_argument("--field", choices=FIELDS, help=f"{FIELDS[0]}; of the suite: all of them")
    p.add_argument("--preset", choices=OFFLINE, default=TOY, help="which prior moves the scene")
    p.add_argument("--stage", type=int, choices=(1, 2, 3), default=3, help="the last to run")
    p.add_argument("--budget", choices=BUDGETS, default="laptop")
    p.add_argument("--cpu", action="store_true", help="on one core, as a laptop without a GPU")
    p.add_argument("--no-ablation", action="store_true", help="no run without the 3D prior")
    p.add_argument(
        "--out", type=Path, help="keeps pictures and trials here; a suite cut off goes on from it"
    )
    p.add_argument("--suite", action="store_true", help="8 subjects; benchmarks/toyworld.md")
    p.add_argument("--jobs", type=int, default=1, help="of the suite, side by side")
    p.add_argument("overrides", nargs="*", help="stage2.trainer.max_steps=100 ...")
    return p


def one_core() -> None:
    """This process and those that it starts see no GPU and take one thread each."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    alone = functools.partial(torch.set_num_threads, 1)
    alone()
    # a fork doesn't have its threads: torch makes them anew where it is told so, and where several
    # that read a model are the first to ask, one may find none
    os.register_at_fork(after_in_child=alone)


def whole_suite(args: argparse.Namespace, out: Path) -> None:
    """Runs it, writes its table and its figures down, and prints the table."""
    words = ["--budget", args.budget, *["--cpu"] * args.cpu]
    words += ["--preset", args.preset] * (args.preset != TOY)
    words += [*["--no-ablation"] * args.no_ablation, *args.overrides]
    fields = FIELDS if args.field is None else (args.field,)
    rows = run_suite(args.jobs, words, fields, out)
    budget = args.budget if args.preset == TOY else f"{args.budget}.{args.preset}"
    write_table(BENCHMARKS / "toyworld.md", budget, rows)
    write_figures(BENCHMARKS / "figures.json", budget, rows, words)
    print(table(rows))


@contextlib.contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """The one that is given, or one that is gone in the end."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="toyworld-") as made:
        yield Path(made)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.cpu:
        one_core()
    if args.suite:
        with folder(args.out) as out:
            whole_suite(args, out)
        return
    # as animate.py does: before anything asks for a GPU, and around all that has an end of its own,
    # which a task's process would come through
    with forks() as start, folder(args.out) as out:
        subject = Subject(args.species, args.motion, args.seed)
        field, until = args.field or FIELDS[0], STAGES[args.stage - 1]
        overrides = [*BUDGETS[args.budget], *args.overrides]
        ablation = not args.no_ablation
        found = evaluate(subject, field, out, until, overrides, ablation, start, args.preset)
        networks = {"classifier": CLASSIFIER, "identity_network": NETWORK}
        known = {k: read_json(path / "config.json") for k, path in networks.items()}
        print(json.dumps({**found, **known}), flush=True)


if __name__ == "__main__":
    main()
