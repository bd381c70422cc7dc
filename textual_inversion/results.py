"""What a run writes into its folder, on the way and at the end."""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from .checkpoints import save_checkpoint
from .hub import push
from .inputs import Inputs
from .learned_rows import write_learned
from .loss_curve import write_loss_curve
from .processes import Processes
from .training import Training
from .validation import sample_pictures, write_row


class Results:
    """For the main process. Each method looks first: what came apart isn't written.

    Raises:
        FloatingPointError: see Watch.look; OSError: a file can't be written.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        inputs: Inputs,
        training: Training,
        validate_every: int,
        on: Processes,
    ):
        self.args, self.inputs, self.training, self.on = args, inputs, training, on
        self.folder = Path(args.output_dir)
        self.validate_every = validate_every  # steps; 0: at the end alone

    def write_due(self) -> None:
        """What is due after this step."""
        args, step = self.args, self.training.step
        if step % args.checkpointing_steps == 0:
            self.save()
        if step % args.save_steps == 0:
            self.write_rows(f"learned_embeds-steps-{step}")
        if self.validate_every and step % self.validate_every == 0 and step < self.training.total:
            self.validate()

    def save(self) -> Path:
        """A checkpoint of this step."""
        self.training.look()
        keep = self.args.checkpoints_total_limit
        return save_checkpoint(self.folder, self.training.step, self.training.state(), keep)

    def write_rows(self, stem: str) -> list[Path]:
        self.training.look()
        return write_learned(
            self.folder,
            stem,
            self.args.placeholder_token,
            self.training.rows,
            not self.args.no_safe_serialization,
        )

    @torch.no_grad()
    def validate(self) -> None:
        """A training picture and samples with the word -> validation/step-N.png, trackers."""
        args, models, step = self.args, self.inputs.models, self.training.step
        if not args.num_validation_images:
            return
        self.training.gradient.forget()  # its memory is what pictures are made in
        samples = sample_pictures(
            models,
            models.text_encoder(self.inputs.word.shown)[0],
            args.num_validation_images,
            args.resolution,
            self.inputs.seed,
        )
        given = self.inputs.pictures[0].permute(1, 2, 0).numpy()
        path = self.folder / "validation" / f"step-{step:06d}.png"
        write_row(path, [given, *samples])
        for tracker in self.on.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": samples}, step=step, **layout)
        self.on.say(f"pictures at step {step}: {path}")

    def finish(self) -> None:
        """The final files."""
        args, training = self.args, self.training
        written = self.write_rows("learned_embeds")
        rates = [training.rate(step) for step in range(training.total)]
        write_loss_curve(self.folder, training.losses.tolist(), rates)
        self.validate()
        if args.save_as_full_pipeline:
            self.write_pipeline()
        if self.inputs.repository:
            address = push(
                self.folder,
                self.inputs.repository,
                args.hub_token,
                model=args.pretrained_model_name_or_path,
                word=args.placeholder_token,
            )
            self.on.say(f"pushed to {address}")
        self.on.say(f"wrote {' and '.join(str(path) for path in written)}", aside=True)

    def write_pipeline(self) -> None:
        """The whole model, with the word in its tokenizer and text encoder."""
        models = self.inputs.models
        parts: dict[str, Any] = {
            "vae": models.vae,
            "text_encoder": self.inputs.source.load(CLIPTextModel, "text_encoder", torch.float32),
            "tokenizer": models.tokenizer,
            "unet": models.unet,
            "scheduler": models.scheduler,
            "safety_checker": None,
            "feature_extractor": None,
        }
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        rows = self.training.rows.detach().cpu()
        pipeline.load_textual_inversion({self.args.placeholder_token: rows})
        pipeline.save_pretrained(self.folder)
