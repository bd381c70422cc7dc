"""All that a run reads before it trains."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .augmentations import TrainingPictures
from .frozen_models import FrozenModels, ModelSource, choose_precision, load_models, use_xformers
from .hub import make_repository
from .processes import Processes
from .word import Word, add_word


@dataclass(frozen=True)
class Inputs:
    seed: int
    pictures: TrainingPictures
    repository: str | None  # the hub's, that the results go to
    source: ModelSource
    models: FrozenModels
    dtype: torch.dtype  # of the text encoder and UNet
    word: Word


def read_inputs(
    args: argparse.Namespace, files: list[Path], resumed: dict[str, Any] | None, on: Processes
) -> Inputs:
    """
    files: the pictures; resumed: a checkpoint's state; on: the processes, which say what is read.

    Raises:
        ValueError, OSError: one that can't be used.
    """
    seed = choose_seed(args.seed, resumed, on)
    pictures = TrainingPictures(
        files,
        args.resolution,
        center_crop=args.center_crop,
        augmented=args.use_augmentations,
        repeats=args.repeats,
        seed=seed,
    )
    on.say(f"pictures: {', '.join(file.name for file in files)}")
    dtype, line = choose_precision(args.mixed_precision, on.device)
    on.say(f"precision: {line}")
    repository = None
    if args.push_to_hub and on.is_main:
        name = args.hub_model_id or Path(args.output_dir).resolve().name
        repository = make_repository(name, args.hub_token)
    source = ModelSource(args.pretrained_model_name_or_path, args.revision, args.variant)
    models = load_models(source, args.tokenizer_name, dtype, on.device)
    word = add_word(models, args, on.device)
    on.say(f"start: {word.start}")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    if args.gradient_checkpointing:
        models.unet.train().enable_gradient_checkpointing()  # it acts only while training
    if args.enable_xformers_memory_efficient_attention:
        on.say(f"attention: {use_xformers(models.unet)}")
    return Inputs(seed, pictures, repository, source, models, dtype, word)


def choose_seed(asked: int | None, resumed: dict[str, Any] | None, on: Processes) -> int:
    """The flag's, the resumed run's, or a random one, alike in all processes and written down
    in checkpoints and trackers."""
    if asked is not None and asked != -1:
        return asked
    if resumed:
        return resumed["settings"]["seed"]
    seed = on.random_seed()
    on.say(f"seed: {seed}")
    return seed
