"""How many steps a run has, and each one's learning rate."""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.optimization import get_scheduler

from .parser import DEFAULT_STEPS, DEFAULT_WARMUP


class Steps(NamedTuple):
    total: int
    validate_every: int  # 0: at the end alone


def pictures_a_step(args: argparse.Namespace, processes: int) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * processes


def plan_steps(args: argparse.Namespace, images: int, processes: int) -> Steps:
    epoch = math.ceil(images * args.repeats / pictures_a_step(args, processes))
    steps = args.max_train_steps
    if steps is None:
        steps = args.num_train_epochs * epoch if args.num_train_epochs else DEFAULT_STEPS
    every = args.validation_steps
    if every is None:
        every = args.validation_epochs * epoch if args.validation_epochs else 100
    return Steps(steps, every if args.validation_prompt else 0)


def learning_rates(args: argparse.Namespace, total: int, processes: int) -> Callable[[int], float]:
    """The learning rate as a function of how many steps were taken before."""
    base = args.learning_rate
    if args.scale_lr:
        base *= pictures_a_step(args, processes)
    made = get_scheduler(
        args.lr_scheduler,
        torch.optim.SGD([torch.zeros(1)], lr=base),  # a scheduler wants to be of one
        num_warmup_steps=DEFAULT_WARMUP if args.lr_warmup_steps is None else args.lr_warmup_steps,
        num_training_steps=total,
        num_cycles=args.lr_num_cycles or 1,
    )
    factor = made.lr_lambdas[0]
    return lambda step: base * factor(step)
