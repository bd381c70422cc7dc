"""What larger batches buy in the same time: several GPUs with a batch each, or more views and
frames a step on one device, beside more steps. Development characters of the toy world.

    python benchmarks/equal_time.py [--stages 1 2] [--characters 4] [--jobs 4] [--limit 250]
        [--out FOLDER]

Each character's stage 1, and from that stage 2, is trained by the quickstart's configs in each of
WAYS, one core each. Gradients of N batches a step are averaged, as DDP does on N GPUs, so a step
stands for as long as one batch's: "time" is the steps, as a share of the config's. A clip whose
frames were split over GPUs would have a quicker step, and so take more of them in the config's
time. The ways that fit one device take as many steps as its core is through with in the time of the
config's, reckoned from steps timed beside the config's own: their "time" is that of the core. The
tables have the means of evaluation/measures.py's figures. What is done in FOLDER isn't done again;
a run that failed is left out, and said; its FOLDER/<character>/log.txt says why.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path

# before torch is loaded, as launch.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import animate124
import pytorch_lightning as pl
import threestudio
from animate124.evaluation.measures import looks, moves, stills
from animate124.evaluation.suite import one_core
from animate124.evaluation.truth import Subject
from animate124.host.argument_types import positive_float, positive_int
from animate124.system.trained import load_scene
from animate124.toyworld.subject import write_subject
from first_frames import CHARACTERS
from omegaconf import OmegaConf
from threestudio.launch import trainer_options
from threestudio.utils.config import dump_config, load_config

ROOT = Path(animate124.__file__).parent
CAMERAS, CLIPS = "data.single_view.n_cameras", "data.single_view.n_clips"
FRAMES, VIEWS = "data.single_view.num_frames", "data.single_view.batch_size"
FIXED = {1: CAMERAS, 2: CLIPS}  # what comes again
PRIOR = {1: "guidance_3d", 2: "guidance"}  # who makes targets for them
PILOT = 4  # of them, while steps are timed


@dataclass(frozen=True)
class Way:
    """How a stage is trained; the first of a stage is the config's own."""

    name: str
    steps: float = 1.0  # of the config's, where it doesn't fit one device
    batches: int = 1  # a step
    settings: tuple[str, ...] = ()
    fits: bool = False  # takes the time of the config's own on one core
    split: bool = False  # a quicker step, of a clip split over GPUs: the config's own time

    @property
    def file(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name)


# a rank's cameras and clips are its own; where two ranks do what one did, they share its number
WAYS = {
    1: (
        Way("one GPU"),
        Way("2 GPUs", batches=2, settings=(f"{CAMERAS}=128",)),
        Way("half of the steps", 0.5),
        Way("half of the steps, 2 GPUs", 0.5, 2, (f"{CAMERAS}=64",)),
        Way("2 views a step", settings=(f"{VIEWS}=2", f"{CAMERAS}=32"), fits=True),
        Way("4 views a step", settings=(f"{VIEWS}=4", f"{CAMERAS}=16"), fits=True),
    ),
    2: (
        Way("one GPU"),
        Way("2 GPUs", batches=2, settings=(f"{CLIPS}=16",)),
        Way("4 GPUs", batches=4, settings=(f"{CLIPS}=32",)),
        Way("a clip over 2 GPUs", 1.9, split=True),  # what splitting it gains at best (README.md)
        Way("a clip over 4 GPUs", 2.6, split=True),
        Way("half of the steps", 0.5),
        Way("half of the steps, 2 GPUs", 0.5, 2, (f"{CLIPS}=8",)),
        Way("a quarter of the steps", 0.25),
        Way("a quarter of the steps, 4 GPUs", 0.25, 4, (f"{CLIPS}=8",)),
        Way("4 frames a clip", settings=(f"{FRAMES}=4",), fits=True),
        Way("16 frames a clip", settings=(f"{FRAMES}=16",), fits=True),
    ),
}
SHOWN = {
    1: ("reference_psnr", "novel_view_psnr"),
    2: (
        "motion_score",
        "identity_share",
        "identity_share_worst",
        "sharpness",
        "motion_energy_ratio",
    ),
}


class Clock(pl.Callback):
    """Seconds of this process's core at each step's start, and at the end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        self.at.append(time.process_time())

    def on_train_end(self, *_) -> None:
        self.at.append(time.process_time())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.at)]


def config_of(stage: int) -> Path:
    return ROOT / "configs" / "toy" / f"deformation-stage{stage}.yaml"


def fit(stage: int, words: Sequence[str]) -> tuple[pl.Trainer, object, list[float]]:
    """Trains it in the working directory; the trainer, the config and each batch's seconds."""
    cfg = load_config(str(config_of(stage)), cli_args=["exp_root_dir=outputs", *words])
    pl.seed_everything(cfg.seed)
    data = threestudio.find(cfg.data_type)(cfg.data)
    system = threestudio.find(cfg.system_type)(cfg.system)
    clock = Clock()
    options = {
        "max_steps": cfg.trainer.max_steps,
        "precision": cfg.trainer.precision,
        "accumulate_grad_batches": cfg.trainer.get("accumulate_grad_batches", 1),
        "callbacks": [clock],
        "logger": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**trainer_options(options, 0))
    trainer.fit(system, datamodule=data)
    return trainer, cfg, clock.steps


def painted(step: int, fixed: int, uses: int) -> bool:
    """Whether a step has to make its target: each camera or clip comes once in `fixed` steps."""
    return step // fixed % uses == 0


@dataclass(frozen=True)
class Cost:
    """Seconds of a step that makes its target, and of one that has it."""

    paint: float
    fit: float

    def of(self, steps: int, fixed: int, uses: int) -> float:
        paints = sum(painted(step, fixed, uses) for step in range(steps))
        return self.fit * steps + (self.paint - self.fit) * paints


def cost(stage: int, words: Sequence[str], uses: int) -> Cost:
    """Timed over PILOT cameras or clips and as many steps as their targets serve."""
    steps = PILOT * uses
    _, _, seconds = fit(stage, [*words, f"{FIXED[stage]}={PILOT}", f"trainer.max_steps={steps}"])
    # the first step compiles
    return Cost(statistics.median(seconds[1:PILOT]), statistics.median(seconds[PILOT:]))


def steps_that_fit(stage: int, way: Way, words: Sequence[str]) -> int:
    """As many as take the time of the config's own."""
    plain = OmegaConf.load(config_of(stage))
    own = OmegaConf.merge(plain, OmegaConf.from_dotlist([*way.settings]))
    uses = plain.system[PRIOR[stage]].target_uses
    fixed = [cfg.data.single_view[FIXED[stage].rpartition(".")[2]] for cfg in (plain, own)]
    time_of = cost(stage, words, uses).of(plain.trainer.max_steps, fixed[0], uses)
    each = cost(stage, [*words, *way.settings], uses)
    return next(n for n in itertools.count(1) if each.of(n + 1, fixed[1], uses) > time_of)


@dataclass(frozen=True)
class Job:
    """One training and what is measured of it."""

    who: tuple[str, str, int]
    stage: int
    way: Way
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / self.who[0]

    @property
    def found(self) -> Path:
        return self.folder / f"stage{self.stage}-{self.way.file}.json"

    @property
    def begun(self) -> Path:
        """The character's stage 1."""
        return self.folder / "stage1.ckpt"

    def __str__(self) -> str:
        return f"{self.who[0]}, stage {self.stage}, {self.way.name}"

    @property
    def begins(self) -> bool:
        """Whether stage 2 begins with what it trains."""
        return self.stage == 1 and self.way == WAYS[1][0]

    def run(self) -> None:
        """Writes figures; the checkpoint, too, where stage 2 begins with it."""
        subject = Subject(*self.who)
        prompts = {1: f"a toy {subject.species}", 2: subject.prompt}
        words = [f"system.prompt_processor.prompt={prompts[self.stage]}"]
        if self.stage == 2:
            words += [f"system.prompt_processor.negative_prompt=a {subject.species}"]
            words += [f"system.weights={self.begun}"]
        with tempfile.TemporaryDirectory() as folder:
            # its own: others of this character may be reading theirs
            pictures = write_subject(Path(folder), subject.species, seed=subject.seed)
            words.append(f"data.image.image_path={pictures['cut-out']}")
            os.chdir(folder)
            Path("load").symlink_to(ROOT / "load")  # where configs look for their priors
            steps = round(self.way.steps * OmegaConf.load(config_of(self.stage)).trainer.max_steps)
            if self.way.fits:
                steps = steps_that_fit(self.stage, self.way, words)
            words += [*self.way.settings, f"trainer.max_steps={steps}"]
            words += [f"trainer.accumulate_grad_batches={self.way.batches}"]
            trainer, cfg, seconds = fit(self.stage, words)
            trainer.save_checkpoint("trained.ckpt", weights_only=True)
            dump_config("parsed.yaml", cfg)
            scene = load_scene(Path("parsed.yaml"), Path("trained.ckpt"))
            if self.begins:
                shutil.copyfile("trained.ckpt", self.begun.with_suffix(".part"))
                os.replace(self.begun.with_suffix(".part"), self.begun)
            figures = stills(subject, scene)
            if self.stage == 2:
                figures |= moves(subject, [scene]) | looks(subject, scene)
            os.chdir(self.folder)
        self.found.write_text(json.dumps(figures | {"steps": steps, "seconds": sum(seconds)}))


def attempt(job: Job) -> None:
    """Runs it in a process of its own, which tells its log what goes wrong."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    job.run()


def run_all(jobs: Sequence[Job], at_once: int, limit: float) -> None:
    """Runs the jobs in their order, stage 2 where there is one to begin with; after so many seconds
    those that run are ended."""
    fork, began = multiprocessing.get_context("fork"), time.monotonic()
    waiting, running = list(jobs), {}
    while waiting or running:
        for job in [job for job in waiting if job.stage == 1 or job.begun.exists()]:
            if len(running) < at_once:
                waiting.remove(job)
                process = fork.Process(target=attempt, args=(job,))
                process.start()
                running[process.sentinel] = process, job, time.monotonic()
        if not running:
            print(f"{len(waiting)} have no stage 1 to begin with", file=sys.stderr)
            return
        left = began + limit - time.monotonic()
        for sentinel in connection.wait([*running], max(0, left)):
            process, job, since = running.pop(sentinel)
            process.join()
            ended = f"{time.monotonic() - since:.0f} s" if job.found.exists() else "failed"
            print(f"{job}: {ended}", file=sys.stderr, flush=True)
        if left <= 0:
            for process, *_ in running.values():
                process.kill()
            print(f"Time is over: {len(waiting) + len(running)} are left.", file=sys.stderr)
            return


def say(stage: int, jobs: Sequence[Job]) -> None:
    """The stage's table."""
    whole = OmegaConf.load(config_of(stage)).trainer.max_steps
    print(f"\n| stage {stage} | steps x batches | time | " + "named | " * (stage == 2), end="")
    print(f"{' | '.join(SHOWN[stage])} |\n{'|---' * (len(SHOWN[stage]) + 2 + stage)}|")
    for way in WAYS[stage]:
        done = [job for job in jobs if (job.stage, job.way) == (stage, way) and job.found.exists()]
        rows = [json.loads(job.found.read_text()) for job in done]
        if not rows:
            continue
        steps = statistics.mean(row["steps"] for row in rows)
        share = steps / whole
        if way.fits:
            plain = [replace(job, way=WAYS[stage][0]).found for job in done]
            base = [json.loads(file.read_text()) for file in plain if file.exists()]
            share = statistics.mean(row["seconds"] for row in rows)
            share /= statistics.mean(row["seconds"] for row in base)
        elif way.split:
            share = 1.0
        cells = [way.name, f"{steps:.0f} x {way.batches}", f"{share:.2f}"]
        if stage == 2:
            named = sum(row["named"] == job.who[1] for job, row in zip(done, rows, strict=True))
            cells.append(f"{named} of {len(rows)}")
        cells += [f"{statistics.mean(row[key] for row in rows):.2f}" for key in SHOWN[stage]]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--stages", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    parser.add_argument(
        "--characters", type=positive_int, default=4, help=f"the first of {len(CHARACTERS)}"
    )
    parser.add_argument("--jobs", type=positive_int, default=1, help="side by side, one core each")
    parser.add_argument(
        "--limit", type=positive_float, default=86400, help="seconds, for all of it"
    )
    parser.add_argument("--out", type=Path, help="where figures stay")
    args = parser.parse_args()
    one_core()
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        who = CHARACTERS[: args.characters]
        jobs = [Job(w, stage, way, out) for stage in (1, 2) for way in WAYS[stage] for w in who]
        wanted = [job for job in jobs if job.stage in args.stages or job.begins]
        todo = [job for job in wanted if not job.found.exists()]
        # what others wait for, then the longest
        todo.sort(key=lambda job: (not job.begins, -job.stage, -job.way.steps * job.way.batches))
        run_all(todo, args.jobs, args.limit)
        for stage in args.stages:
            say(stage, jobs)


if __name__ == "__main__":
    main()
