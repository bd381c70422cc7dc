"""A stage's training step as the benchmarks run it: its own config, the models, Lightning.

Learning rates are 0, so that the scene stays what it is. Priors have random weights and the
published models' sizes; `--toy` takes the shipped ones, `--tiny` models of a few kilobytes.
"""

import argparse
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import animate124
import diffusers
import pytorch_lightning as pl
import threestudio
import torch
from animate124.host.argument_types import positive_int
from animate124.pipeline.request import FIELDS, GRID
from animate124.toyworld.random_priors import make_random_priors
from full_size_models import install
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from threestudio.launch import trainer_options
from threestudio.utils.config import load_config
from threestudio.utils.misc import get_rank
from video_families import FAMILIES, install_video

ROOT = Path(animate124.__file__).parent
SECTION = re.compile(r"^system\.(guidance\w*)\.")
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


def step_options(description: str) -> argparse.ArgumentParser:
    """What says which step: of this script, and of others that time one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--stage", type=int, choices=[1, 2, 3], required=True)
    parser.add_argument("--field", choices=FIELDS, default=FIELDS[0], help="as animate.py's")
    parser.add_argument("--scene", choices=["blob", "sharp"], default="blob")
    parser.add_argument(
        "--video", choices=["ms", "zs", *FAMILIES], default="ms", help="as the configs' names end"
    )
    parser.add_argument("--compile", choices=["false", "graph", "inductor"], default="false")
    parser.add_argument("--warm-up", type=positive_int, default=16, help="steps before measuring")
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


def build_config(args: argparse.Namespace, folder: Path) -> tuple[Path, list[str]]:
    """The stage's config file, and the command line that makes it this benchmark's."""
    name = config_name(args)
    overrides = [
        f"data.image.image_path={ROOT}/load/toy-panda/_rgba.png",
        "system.prompt_processor.prompt=a panda is dancing",
        "system.weights=null",
        f"system.geometry.density_blob_scale={ {'blob': 10, 'sharp': 100}[args.scene] }",
        f"system.speed.compile={args.compile}",
        f"exp_root_dir={folder}/outputs",
    ]
    if args.toy:
        (folder / "load").symlink_to(ROOT / "load")  # where the config looks for its priors
    else:
        overrides += random_priors(args, folder)
    if args.tiny:
        overrides += TINY + TINY_SIZES[args.stage]
        if args.stage > 1 and args.video in FAMILIES:
            frames = 9 if args.video == "ltx" else 5  # as causal VAEs take them
            overrides.append(f"data.single_view.num_frames={frames}")
    path = ROOT / "configs" / f"{name}.yaml"
    has = set(OmegaConf.load(path).system)  # not every stage asks Zero123
    overrides = [word for word in overrides if has.issuperset(SECTION.findall(word))]
    return path, [*overrides, *args.overrides]


def which(args: argparse.Namespace) -> str:
    """The step in the names of figures, such as toy-deformation-stage2. Those of the published
    method and of the full-size stage 1, which is the same for each field, name none."""
    field = "" if args.field == GRID or (args.stage == 1 and not args.toy) else f"{args.field}-"
    return f"{'toy-' * args.toy}{field}stage{args.stage}"


def config_name(args: argparse.Namespace) -> str:
    """As configs/ has it."""
    if args.toy:
        return which(args).replace("toy-", "toy/")
    return f"animate124-{which(args)}" + ("" if args.stage == 1 else f"-{args.video}")


def random_priors(args: argparse.Namespace, folder: Path) -> list[str]:
    """Puts models of random weights into the folder; the overrides that name them."""
    if args.tiny:
        make_random_priors(folder)
    else:
        install(folder, "cuda" if torch.cuda.is_available() else "cpu")
    model = "pretrained_model_name_or_path"
    if args.stage > 1 and args.video in FAMILIES:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        overrides = install_video(args.video, folder, device, args.tiny)
    else:
        shown = "sd" if args.stage == 1 else "text-to-video"
        overrides = [f"system.guidance.{model}={folder}/{shown}"]
    overrides.append(f"system.guidance_3d.{model}={folder}/zero123")
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
