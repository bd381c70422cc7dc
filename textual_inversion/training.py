"""The steps that train the new rows, and the state to go on from."""

import argparse
import hashlib
import time
from typing import Any

import torch

from .denoising import draw_batch, reseed
from .inputs import Inputs
from .latent_bank import encode_bank
from .processes import Processes
from .schedule import learning_rates
from .token_gradient import token_gradient
from .watch import Watch

# what a run's result depends on, beside its pictures; a resumed run that differs says so
DECISIVE = """
    pretrained_model_name_or_path revision variant tokenizer_name placeholder_token num_vectors
    learnable_property resolution use_augmentations repeats train_batch_size
    gradient_accumulation_steps learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles
    adam_beta1 adam_beta2 adam_weight_decay adam_epsilon seed
""".split()  # noqa: SIM905


class Training:
    """Begins at step 0; `restore` puts it elsewhere, `prepare` encodes what its steps need."""

    def __init__(self, args: argparse.Namespace, inputs: Inputs, total: int, on: Processes):
        self.args, self.inputs, self.total, self.on = args, inputs, total, on
        self.models, self.rows = inputs.models, inputs.word.rows
        self.alpha_bar = self.models.scheduler.alphas_cumprod.to(on.device)
        self.gradient = token_gradient(args, inputs, on.device)
        self.rate = learning_rates(args, total, on.count)  # each step sets it
        self.optimizer = torch.optim.AdamW(
            [self.rows],
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
            fused=on.device.type == "cuda",  # needs no look at the scaler from the host
        )
        # the loss is a mean over all latents, so gradients would vanish in float16
        half = inputs.dtype == torch.float16 and on.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(on.device.type, enabled=half)
        self.step, self.losses = 0, torch.zeros(total, device=on.device)
        self.watch = Watch(0, self.scaler.is_enabled())

    def prepare(self) -> None:
        """Encodes the bank; afterwards only UNet and text encoder are at work."""
        start = time.perf_counter()
        pictures = self.inputs.pictures
        self.bank = encode_bank(self.models.vae, pictures, workers=self.args.dataloader_num_workers)
        self.generator = torch.Generator(self.on.device)
        seconds = time.perf_counter() - start
        self.on.say(f"latents: {len(pictures)} pictures encoded once, in {seconds:.1f} s")

    def train_step(self) -> None:
        """One optimizer step. On a GPU nothing here waits for the device."""
        args = self.args
        total, gradient = torch.zeros((), device=self.on.device), torch.zeros_like(self.rows)
        scale = self.scaler.scale(torch.ones_like(total)) / args.gradient_accumulation_steps
        for micro in range(args.gradient_accumulation_steps):
            number = self.step * args.gradient_accumulation_steps + micro
            reseed(self.generator, self.inputs.seed, self.on.index, number)
            batch = draw_batch(
                self.bank,
                self.inputs.word.prompts,
                self.alpha_bar,
                self.models.scheduler.config["prediction_type"],
                args.train_batch_size,
                self.generator,
            )
            loss, part = self.gradient(batch, scale)
            gradient += part
            total += loss / args.gradient_accumulation_steps
        self.rows.grad = self.on.mean(gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses[self.step] = self.on.mean(total)
        self.step += 1

    def look(self) -> None:
        """Before anything is written; waits for the GPU.

        Raises:
            FloatingPointError: see Watch.look.
        """
        taken = float(self.optimizer.state[self.rows].get("step", 0))
        self.watch.look(self.step, self.losses, self.rows, taken)

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for picture in self.inputs.pictures.pictures:
            digest.update(picture.tobytes())
        chosen = {name: getattr(self.args, name) for name in DECISIVE}
        return chosen | {
            "seed": self.inputs.seed,
            "pictures": digest.hexdigest()[:16],
            "precision": str(self.inputs.dtype),
            "processes": self.on.count,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "rows": self.rows.detach().cpu(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "losses": self.losses[: self.step].cpu(),
            "settings": self.settings(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint; settings that differ are named, and the new ones count.

        Raises:
            ValueError: it is another model's, or beyond the last step.
        """
        rows = state["rows"]
        if rows.shape != self.rows.shape:
            raise ValueError(
                f"The checkpoint has rows of shape {tuple(rows.shape)}, but this run needs "
                f"{tuple(self.rows.shape)}: another --num_vectors, or another model."
            )
        if state["step"] > self.total:
            raise ValueError(
                f"The checkpoint is at step {state['step']}, beyond --max_train_steps {self.total}."
            )
        before = state["settings"]
        for name, value in self.settings().items():
            if before.get(name) != value:
                self.on.say(f"resume: {name} was {before.get(name)}, is now {value}")
        if state["step"] == self.total:
            self.on.say(f"resume: all {self.total} steps are done; only the results are written")
        with torch.no_grad():
            self.rows.copy_(rows)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.losses[: self.step] = state["losses"].to(self.on.device)
        self.watch = Watch(self.step, self.scaler.is_enabled())
