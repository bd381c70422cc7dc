"""Milliseconds, memory and the split of one training step, with full-size random models.

python benchmarks/step.py --stage 2 [--scene blob|sharp] [--video ms|zs] [--compile graph|inductor]
    [--baseline] [--memory-fraction-gb 12] [--devices 2] [--toy] [--tiny] [key=value ...]

The stage's own config runs under Lightning as launch.py runs it, at 16-mixed, on the data module's
batches; learning rates are 0 so that the scene stays what it is ("blob": what training starts from;
"sharp": as sharp as a trained one). Times are those between the starts of two steps. The split is
measured in steps of its own. `--toy` takes the quickstart's config and shipped priors instead, from
the blob: what a laptop does. `--tiny` takes tiny models and pictures, to try this script on a CPU.
With `--devices` above 1 a step is DDP's: a batch a device, gradients averaged; what is printed is
the first device's. GB are 10^9 bytes. `key=value` overrides the config.
"""

import argparse
import collections
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

# before torch is loaded, as launch.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import animate124
import diffusers
import pytorch_lightning as pl
import threestudio
import torch
from animate124.renderer import nerf_volume_renderer
from animate124.toyworld.random_priors import make_random_priors
from full_size_models import install
from measuring import cap_memory
from pytorch_lightning.loggers import TensorBoardLogger
from threestudio.launch import leave_process_group, trainer_options
from threestudio.utils.config import load_config
from threestudio.utils.misc import get_rank

ROOT = Path(animate124.__file__).parent
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
KINDS = ("usual", "start")  # of batches, as in `name_of`
PRIORS = {"guidance": "image or video", "guidance_3d": "Zero123", "guidance_cn": "tile"}
TINY = [
    "data.image.width=16",
    "data.image.height=16",
    "data.single_view.width=16",
    "data.single_view.height=16",
    "data.single_view.width_vid=16",
    "data.single_view.height_vid=16",
    "data.single_view.num_frames=2",
    "system.renderer.num_samples_per_ray=32",
    "system.geometry.pos_encoding_config.log2_hashmap_size=10",
    "system.geometry.pos_encoding_config.n_levels=4",
    "system.guidance_3d.size=64",
]
TINY_SIZES = {
    1: ["system.guidance.size=64"],
    2: ["system.guidance.width=64", "system.guidance.height=64"],
    3: [
        "system.guidance.width=64",
        "system.guidance.height=64",
        "system.guidance_cn.fixed_size=64",
    ],
}


def mark() -> torch.cuda.Event | float:
    """Now, as the GPU will see it; on a CPU, the clock."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    return (end - start) * 1e3 if isinstance(start, float) else start.elapsed_time(end)


class Probes:
    """Marks around parts of a step; installed for the steps that are split."""

    def __init__(self) -> None:
        self.spans: dict[str, list] = collections.defaultdict(list)  # of the step at hand
        self.steps: list[dict[str, float]] = []
        self.counts: list[dict[str, int]] = []

    def around(self, owner: object, name: str, label: str) -> None:
        """Marks before and after each call of an object's method."""
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = mark()
            result = inner(*args, **kwargs)
            self.spans[label].append((start, mark()))
            return result

        setattr(owner, name, timed)

    def encoder(self, prior: object, label: str) -> None:
        """A prior's VAE: forward around `prepare`, backward from latents to pictures."""
        inner = prior.prepare

        def timed(images, *args):
            start, ends = mark(), []
            latents, condition = inner(images, *args)
            self.spans[f"{label} VAE forward"].append((start, mark()))
            latents.register_hook(lambda grad: ends.append(mark()))
            images.register_hook(
                lambda grad: self.spans[f"{label} VAE backward"].append((ends[0], mark()))
            )
            return latents, condition

        prior.prepare = timed

    def renderer(self, renderer: nerf_volume_renderer.NeRFVolumeRenderer) -> None:
        self.around(renderer, "forward", "render forward")
        self.around(renderer, "update_step", "occupancy grid")
        self.around(renderer, "sample", "  of it march and prune")
        sample, march = renderer.sample, nerf_volume_renderer.march
        self.kept = self.marched = self.hit = self.rays = 0

        def counted_march(*args, **kwargs):
            found = march(*args, **kwargs)
            self.marched += len(found[0])
            return found

        def counted_sample(rays):
            samples = sample(rays)
            self.kept += len(samples)
            self.hit += len(samples.ray_indices.unique())
            self.rays += len(rays)
            return samples

        renderer.sample, nerf_volume_renderer.march = counted_sample, counted_march

    def end_step(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        step = {
            label: sum(milliseconds(*span) for span in spans) for label, spans in self.spans.items()
        }
        encoders = sum(ms for label, ms in step.items() if label.endswith("VAE backward"))
        step["render backward, losses"] = step.pop("backward") - encoders
        named = sum(ms for label, ms in step.items() if label != "step" and label[0] != " ")
        step["rest"] = step["step"] - named
        self.steps.append(step)
        self.counts.append({k: getattr(self, k) for k in ("kept", "marched", "hit", "rays")})
        self.kept = self.marched = self.hit = self.rays = 0
        self.spans.clear()


class Watch(pl.Callback):
    """Times steps: first to warm up, then to measure, then to split, then one for its syncs."""

    def __init__(self, warm_up: int, measured: int, split: int):
        self.first, self.split = warm_up, warm_up + measured
        self.last = self.split + split
        self.starts: list = []
        self.kinds: list[str] = []  # of each step
        self.probes = Probes()
        self.syncs: collections.Counter = collections.Counter()
        self.peak = {"allocated": 0.0, "reserved": 0.0}

    def on_train_batch_start(self, trainer, system, batch, batch_idx) -> None:
        if batch_idx == self.first and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.starts.append(mark())
        if batch_idx == self.split:
            if torch.cuda.is_available():
                self.peak = {
                    "allocated": torch.cuda.max_memory_allocated() / 1e9,
                    "reserved": torch.cuda.max_memory_reserved() / 1e9,
                }
            self.install_probes(system)
        if batch_idx == self.last and torch.cuda.is_available():
            self.catcher = warnings.catch_warnings(record=True)
            self.caught = self.catcher.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self.kinds.append(KINDS["clip" in batch and "reference" in batch])

    def install_probes(self, system) -> None:
        self.probes.renderer(system.renderer)
        for name, label in PRIORS.items():
            prior = getattr(system, name, None)
            if prior is not None:
                self.probes.encoder(prior, label)
                self.probes.around(prior, "guided_noise", f"{label} UNet")

    def on_before_backward(self, trainer, system, loss) -> None:
        self.backward = mark()

    def on_after_backward(self, trainer, system) -> None:
        self.optimizer = mark()
        self.probes.spans["backward"].append((self.backward, self.optimizer))

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx) -> None:
        now = mark()
        self.probes.spans["optimizer"].append((self.optimizer, now))
        self.probes.spans["step"].append((self.starts[-1], now))
        if self.split <= batch_idx < self.last:
            self.probes.end_step()
        self.probes.spans.clear()
        if batch_idx == self.last and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
            self.catcher.__exit__(None, None, None)
            for warning in self.caught:
                if "called a synchronizing" in str(warning.message):
                    self.syncs[f"{Path(warning.filename).name}:{warning.lineno}"] += 1

    def times(self, kind: str) -> list[float]:
        """Milliseconds of the measured steps of this kind."""
        steps = range(self.first, self.split)
        return [
            milliseconds(self.starts[i], self.starts[i + 1]) for i in steps if self.kinds[i] == kind
        ]


def build_config(args: argparse.Namespace, folder: Path) -> tuple[Path, list[str]]:
    """The stage's config file, and the command line that makes it this benchmark's."""
    name = "animate124-stage1" if args.stage == 1 else f"animate124-stage{args.stage}-{args.video}"
    overrides = [
        f"data.image.image_path={ROOT}/load/toy-panda/_rgba.png",
        "system.prompt_processor.prompt=a panda is dancing",
        "system.weights=null",
        f"system.geometry.density_blob_scale={ {'blob': 10, 'sharp': 100}[args.scene] }",
        f"system.speed.compile={args.compile}",
        f"exp_root_dir={folder}/outputs",
    ]
    if args.toy:
        name = f"toy/stage{args.stage}"
        (folder / "load").symlink_to(ROOT / "load")  # where the config looks for its priors
    else:
        overrides += random_priors(args, folder)
    if args.tiny:
        overrides += TINY + TINY_SIZES[args.stage]
    return ROOT / "configs" / f"{name}.yaml", [*overrides, *args.overrides]


def random_priors(args: argparse.Namespace, folder: Path) -> list[str]:
    """Puts models of random weights into the folder; the overrides that name them."""
    if args.tiny:
        make_random_priors(folder)
    else:
        install(folder, "cuda" if torch.cuda.is_available() else "cpu")
    model = "pretrained_model_name_or_path"
    overrides = [
        f"system.guidance.{model}={folder}/{'sd' if args.stage == 1 else 'text-to-video'}",
        f"system.guidance_3d.{model}={folder}/zero123",
    ]
    if args.stage == 3:
        token = folder / "learned_embeds.bin"
        torch.save({"<token>": torch.randn(32 if args.tiny else 768)}, token)
        overrides += [
            f"system.guidance_cn.{model}={folder}/sd",
            f"system.guidance_cn.controlnet_name_or_path={folder}/controlnet-tile",
            "system.prompt_processor_cn.prompt=a <token> is dancing",
            f"system.prompt_processor_cn.learned_embeds_path={token}",
        ]
    return overrides


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


def report(args: argparse.Namespace, watch: Watch, system: pl.LightningModule) -> None:
    nothing = ((None, None), None, (None, None), None)
    known = args.baseline and not args.tiny and not args.toy and args.video == "ms"
    times, peak, samples, hit = ORIGINAL[args.stage, args.scene] if known else nothing
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"\n{'toy ' * args.toy}stage {args.stage}, {args.scene}, video {args.video}, "
        f"compile {args.compile}, {device}, torch {torch.__version__} {' '.join(args.overrides)}"
    )
    for i, kind in enumerate(KINDS):
        ms = watch.times(kind)
        if ms:
            median = beside(statistics.median(ms), times[i], "{:.1f}".format)
            name = name_of(kind, args.stage)
            print(f"{name}: {median} ms, {min(ms):.1f} to {max(ms):.1f} of {len(ms)} steps")
    mean = statistics.mean(ms for kind in KINDS for ms in watch.times(kind))
    print(f"devices: {args.devices}, batches a second: {1e3 * args.devices / mean:.2f}")
    print(
        f"peak {beside(watch.peak['allocated'], peak, '{:.2f}'.format)} GB allocated, "
        f"{watch.peak['reserved']:.2f} GB reserved; weights {weights_gb(system):.2f} GB"
    )
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
    if watch.syncs:
        where = ", ".join(f"{place} {n}" for place, n in watch.syncs.most_common())
        print(f"waits of the CPU for the GPU in one step: {watch.syncs.total()} ({where})")


def step_options(description: str) -> argparse.ArgumentParser:
    """What says which step: of this script, and of others that time one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--stage", type=int, choices=[1, 2, 3], required=True)
    parser.add_argument("--scene", choices=["blob", "sharp"], default="blob")
    parser.add_argument("--video", choices=["ms", "zs"], default="ms", help="ModelScope, ZeroScope")
    parser.add_argument("--compile", choices=["false", "graph", "inductor"], default="false")
    parser.add_argument("--warm-up", type=int, default=16, help="steps before measuring")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--toy", action="store_true", help="the quickstart's step")
    models.add_argument("--tiny", action="store_true", help="tiny models and pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def train(
    args: argparse.Namespace, folder: Path, callback: pl.Callback, steps: int, devices: int = 1
) -> pl.Trainer:
    """So many steps of the stage under Lightning, with learning rates of 0."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    diffusers.utils.logging.set_verbosity_error()
    sys.argv[0] = os.path.abspath(sys.argv[0])  # DDP starts it again
    os.chdir(folder)  # the cache of text embeddings lies in the working directory
    path, overrides = build_config(args, folder)
    cfg = load_config(str(path), cli_args=overrides)
    for group in cfg.system.optimizer.params.values():
        group.lr = 0.0
    pl.seed_everything(cfg.seed + get_rank())
    data = threestudio.find(cfg.data_type)(cfg.data)
    system = threestudio.find(cfg.system_type)(cfg.system)
    options = {
        "max_steps": steps,
        "precision": cfg.trainer.precision,
        "log_every_n_steps": cfg.trainer.log_every_n_steps,
        "logger": TensorBoardLogger(folder),
        "callbacks": [callback],
        "devices": devices,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**trainer_options(options, devices if torch.cuda.is_available() else 0))
    trainer.fit(system, datamodule=data)
    return trainer


def main() -> None:
    parser = step_options(__doc__.splitlines()[0])
    parser.add_argument(
        "--baseline", action="store_true", help="the original's figures beside ours"
    )
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on a CPU")
    parser.add_argument("--memory-fraction-gb", type=float, help="let CUDA have no more than this")
    parser.add_argument("--steps", type=int, default=30, help="steps that are measured")
    parser.add_argument("--split-steps", type=int, default=6, help="steps that are split")
    args = parser.parse_args()

    cap_memory(args.memory_fraction_gb)
    watch = Watch(args.warm_up, args.steps, args.split_steps)
    with tempfile.TemporaryDirectory() as temporary:
        trainer = train(args, Path(temporary), watch, watch.last + 1, args.devices)
        leave_process_group()
        if trainer.is_global_zero:
            report(args, watch, trainer.lightning_module)


if __name__ == "__main__":
    main()
