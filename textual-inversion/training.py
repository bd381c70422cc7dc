"""One run of textual inversion: reads every input, trains the new rows, writes the results."""

import argparse
import contextlib
import hashlib
import math
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import accelerate
import torch
import transformers
from animate124 import events
from augmentations import TrainingPictures, image_files
from denoising import denoising_loss, draw_batch, reseed
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from frozen_models import ModelSource, choose_precision, load_models, use_xformers
from hub import make_repository, push
from latent_bank import encode_bank
from learned_rows import (
    TEMPLATES,
    PromptReader,
    SplicedEmbedding,
    check_placeholder,
    initial_rows,
    write_learned,
)
from run_folder import (
    find_checkpoint,
    load_checkpoint,
    make_output_dir,
    newest_checkpoint,
    put_earlier_aside,
    running_mean,
    save_checkpoint,
    write_loss_curve,
)
from textual_inversion import DEFAULT_STEPS, DEFAULT_WARMUP
from tqdm import tqdm
from transformers import CLIPTextModel
from validation import sample_pictures, write_row
from watch import Watch

LOOK_EVERY = 2.0  # seconds between two looks at the loss; each waits for the GPU
AGREE_EVERY = 25  # steps after which several processes agree on whether to stop
# what a run's result depends on, beside its pictures; a resumed run that differs says so
DECISIVE = """
    pretrained_model_name_or_path revision variant tokenizer_name placeholder_token num_vectors
    learnable_property resolution use_augmentations repeats train_batch_size
    gradient_accumulation_steps learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles
    adam_beta1 adam_beta2 adam_weight_decay adam_epsilon seed
""".split()  # noqa: SIM905


class TextualInversion:
    """Made from the command line's flags; whatever they name is read here, and errors come here.

    Raises:
        ValueError, OSError: an input that can't be used.
    """

    def __init__(self, args: argparse.Namespace, notes: list[str] = ()):
        transformers.utils.logging.disable_progress_bar()
        self.args, self.folder = args, Path(args.output_dir)
        make_output_dir(self.folder)
        files = image_files(Path(args.train_data_dir).expanduser())
        self.accelerator = self.make_accelerator()
        self.device = self.accelerator.device
        for note in notes:
            self.say(note)
        self.stopped_by: int | None = None  # a signal

        resumed = self.checkpoint()
        self.seed = self.choose_seed(resumed)
        self.pictures = TrainingPictures(
            files,
            args.resolution,
            center_crop=args.center_crop,
            augmented=args.use_augmentations,
            repeats=args.repeats,
            seed=self.seed,
        )
        self.say(f"pictures: {', '.join(file.name for file in files)}")
        self.total, self.validate_every = self.plan_steps(len(files))
        self.dtype, line = choose_precision(args.mixed_precision, self.device)
        self.say(f"precision: {line}")
        self.repository = None
        if args.push_to_hub and self.accelerator.is_main_process:
            name = args.hub_model_id or self.folder.resolve().name
            self.repository = make_repository(name, args.hub_token)
        self.source = ModelSource(args.pretrained_model_name_or_path, args.revision, args.variant)
        self.models = load_models(self.source, args.tokenizer_name, self.dtype, self.device)
        self.alpha_bar = self.models.scheduler.alphas_cumprod.to(self.device)
        self.add_word()
        self.set_up_speed()
        self.optimizer = torch.optim.AdamW(
            [self.rows],
            lr=self.base_rate(),
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
            fused=self.device.type == "cuda",  # needs no look at the scaler from the host
        )
        self.rate_factor = self.schedule()
        # the loss is a mean over all latents, so gradients would vanish in float16
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype == torch.float16 and self.device.type == "cuda"
        )
        self.step, self.losses = 0, torch.zeros(self.total, device=self.device)
        self.resumed = resumed is not None
        if resumed:
            self.restore(resumed)
        self.watch = Watch(self.step, self.scaler.is_enabled())

    # ------------------------------------------------------------------------- reading inputs

    def say(self, line: str, aside: bool = False) -> None:
        """A line from the main process, past the progress bar; it is also told, but for an aside
        (as in the host's log.py)."""
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
            if not aside:
                events.message(line)

    def make_accelerator(self) -> accelerate.Accelerator:
        """Device, processes and trackers. Precision is ours: accelerate's autocast isn't used."""
        args = self.args
        report_to = None if args.report_to == "none" else args.report_to
        project = accelerate.utils.ProjectConfiguration(
            project_dir=str(self.folder), logging_dir=str(self.folder / args.logging_dir)
        )
        made = accelerate.Accelerator(
            mixed_precision="no", log_with=report_to, project_config=project
        )
        if report_to not in (None, "all") and not made.log_with:
            raise ValueError(
                f"--report_to {report_to}: `pip install {report_to}` first, or --report_to none."
            )
        return made

    def plan_steps(self, images: int) -> tuple[int, int]:
        """All steps, and after how many each validation comes (0: at the end alone)."""
        args = self.args
        samples = args.train_batch_size * args.gradient_accumulation_steps
        epoch = math.ceil(images * args.repeats / (samples * self.accelerator.num_processes))
        steps = args.max_train_steps
        if steps is None:
            steps = args.num_train_epochs * epoch if args.num_train_epochs else DEFAULT_STEPS
        every = args.validation_steps
        if every is None:
            every = args.validation_epochs * epoch if args.validation_epochs else 100
        return steps, every if args.validation_prompt else 0

    def choose_seed(self, resumed: dict | None) -> int:
        """The flag's, the resumed run's, or a random one, alike in all processes and written down
        in checkpoints and trackers."""
        if self.args.seed not in (None, -1):
            return self.args.seed
        if resumed:
            return resumed["settings"]["seed"]
        seed = accelerate.utils.broadcast_object_list([secrets.randbelow(2**31)])[0]
        self.say(f"seed: {seed}")
        return seed

    def add_word(self) -> None:
        """Splices the new rows into the text encoder and reads the prompts."""
        args, models = self.args, self.models
        check_placeholder(models.tokenizer, args.placeholder_token)
        table = models.text_encoder.get_input_embeddings()
        rows, start = initial_rows(
            models.tokenizer, table.weight, args.initializer_token, args.num_vectors
        )
        self.say(f"start: {start}")
        embedding = SplicedEmbedding(table, rows)
        models.text_encoder.set_input_embeddings(embedding)
        self.rows = embedding.rows

        first = table.num_embeddings
        new_ids = range(first, first + args.num_vectors)
        reader = PromptReader(
            models.tokenizer, args.placeholder_token, new_ids, models.prompt_length
        )
        templates = [t.format(args.placeholder_token) for t in TEMPLATES[args.learnable_property]]
        self.prompts = reader.ids(templates).to(self.device)
        shown = args.validation_prompt or templates[0]
        self.validation_ids = reader.ids([shown, ""]).to(self.device)
        if first not in self.validation_ids:
            raise ValueError(
                f"--validation_prompt {shown!r} has no {args.placeholder_token}, so it would show "
                "nothing of what is learnt. Write it where the subject stands."
            )

    def set_up_speed(self) -> None:
        """What the flags say on memory and speed."""
        args, models = self.args, self.models
        if args.allow_tf32:
            torch.set_float32_matmul_precision("high")
        if args.gradient_checkpointing:
            models.unet.train().enable_gradient_checkpointing()  # it acts only while training
        if args.enable_xformers_memory_efficient_attention:
            self.say(f"attention: {use_xformers(models.unet)}")
        self.unet = torch.compile(models.unet) if args.compile else models.unet

    def base_rate(self) -> float:
        args = self.args
        if not args.scale_lr:
            return args.learning_rate
        batch = args.train_batch_size * args.gradient_accumulation_steps
        return args.learning_rate * batch * self.accelerator.num_processes

    def rate(self, step: int) -> float:
        """The learning rate of the step that follows `step` others."""
        return self.base_rate() * self.rate_factor(step)

    def schedule(self) -> Callable[[int], float]:
        """What the learning rate is multiplied by, as a function of the step."""
        args = self.args
        warmup = DEFAULT_WARMUP if args.lr_warmup_steps is None else args.lr_warmup_steps
        made = get_scheduler(
            args.lr_scheduler,
            self.optimizer,
            num_warmup_steps=warmup,
            num_training_steps=self.total,
            num_cycles=args.lr_num_cycles or 1,
        )
        return made.lr_lambdas[0]

    # --------------------------------------------------------------------------- checkpoints

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for picture in self.pictures.pictures:
            digest.update(picture.tobytes())
        chosen = {name: getattr(self.args, name) for name in DECISIVE}
        return chosen | {
            "seed": self.seed,
            "pictures": digest.hexdigest()[:16],
            "precision": str(self.dtype),
            "processes": self.accelerator.num_processes,
        }

    def checkpoint(self) -> dict | None:
        """The state to go on from."""
        asked = self.args.resume_from_checkpoint
        if not asked:
            return None
        if asked == "latest":
            path, state = newest_checkpoint(self.folder, self.say)
        else:
            path = find_checkpoint(self.folder, asked)
            state = load_checkpoint(path)
        if state is None:
            self.say(f"resume: {self.folder} has no checkpoint to go on from; starting anew")
        else:
            self.say(f"resume: {path}, step {state['step']}")
        return state

    def restore(self, state: dict) -> None:
        """Continues from a checkpoint; settings that differ are named, and the new ones count."""
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
                self.say(f"resume: {name} was {before.get(name)}, is now {value}")
        if state["step"] == self.total:
            self.say(f"resume: all {self.total} steps are done; only the results are written")
        with torch.no_grad():
            self.rows.copy_(rows)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.losses[: self.step] = state["losses"].to(self.device)

    def look(self) -> None:
        """Before anything is written; waits for the GPU.

        Raises:
            FloatingPointError: see Watch.look.
        """
        taken = float(self.optimizer.state[self.rows].get("step", 0))
        self.watch.look(self.step, self.losses, self.rows, taken)

    def save(self) -> Path:
        self.look()
        state = {
            "step": self.step,
            "rows": self.rows.detach().cpu(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "losses": self.losses[: self.step].cpu(),
            "settings": self.settings(),
        }
        return save_checkpoint(self.folder, self.step, state, self.args.checkpoints_total_limit)

    # ------------------------------------------------------------------------------ training

    def train_step(self) -> None:
        """One optimizer step. On a GPU nothing here waits for the device."""
        args, accelerator = self.args, self.accelerator
        total = torch.zeros((), device=self.device)
        for micro in range(args.gradient_accumulation_steps):
            number = self.step * args.gradient_accumulation_steps + micro
            reseed(self.generator, self.seed, accelerator.process_index, number)
            batch = draw_batch(
                self.bank,
                self.prompts,
                self.alpha_bar,
                self.models.scheduler.config.prediction_type,
                args.train_batch_size,
                self.generator,
            )
            loss = denoising_loss(self.unet, self.models.text_encoder, batch, self.dtype)
            loss = loss / args.gradient_accumulation_steps
            self.scaler.scale(loss).backward()
            total += loss.detach()
        if accelerator.num_processes > 1:
            self.rows.grad = accelerator.reduce(self.rows.grad, reduction="mean")
            total = accelerator.reduce(total, reduction="mean")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses[self.step] = total
        self.step += 1

    def prepare(self) -> None:
        """Encodes the bank; afterwards only UNet and text encoder are at work."""
        start = time.perf_counter()
        self.bank = encode_bank(
            self.models.vae, self.pictures, workers=self.args.dataloader_num_workers
        )
        self.generator = torch.Generator(self.device)
        seconds = time.perf_counter() - start
        self.say(f"latents: {len(self.pictures)} pictures encoded once, in {seconds:.1f} s")

    def run(self) -> int:
        """Trains, writes everything; the exit code: 0, or 128 + the signal that stopped it.

        Raises:
            FloatingPointError: the loss or the rows are no numbers any more, or nothing is learnt.
                What was written before stays.
            OSError: a file can't be written.
        """
        args, main = self.args, self.accelerator.is_main_process
        self.prepare()
        if main and not self.resumed and (aside := put_earlier_aside(self.folder)):
            self.say(f"an earlier run's files are kept in {aside}")
        config = {**vars(args), "seed": self.seed}
        config = {k: v for k, v in config.items() if k != "hub_token" and v is not None}
        self.accelerator.init_trackers("textual_inversion", config=config)
        first, start = self.step, time.perf_counter()
        clock, looked = start, self.step
        with self.stop_softly(), self.progress_bar() as bar:
            while self.step < self.total:
                self.train_step()
                if self.step == first + 1 < self.total:  # it may have compiled, or picked kernels
                    self.look()  # waits
                    if args.compile:
                        self.say(f"compile: first step in {time.perf_counter() - start:.1f} s")
                    clock = time.perf_counter()
                elif time.perf_counter() - clock > LOOK_EVERY or self.step == self.total:
                    self.report(bar, looked, clock)
                    clock, looked = time.perf_counter(), self.step
                if main:
                    self.write_on_the_way()
                if self.must_stop():
                    return self.stop()
        if self.step > first:
            self.summarise(self.step - first, time.perf_counter() - start)
        if main:
            self.finish()
        self.accelerator.end_training()
        return 0

    def must_stop(self) -> bool:
        """Whether a signal came, to any of the processes."""
        if self.accelerator.num_processes == 1:
            return self.stopped_by is not None
        if self.step % AGREE_EVERY:
            return False
        signals = torch.tensor(float(self.stopped_by is not None), device=self.device)
        if not self.accelerator.reduce(signals).item():
            return False
        self.stopped_by = self.stopped_by or signal.SIGINT
        return True

    @contextlib.contextmanager
    def stop_softly(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once."""

        def note(number: int, frame: FrameType | None) -> None:
            self.stopped_by = number
            signal.signal(number, before[number])

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> int:
        """Saves a checkpoint and says how to go on."""
        if self.accelerator.is_main_process:
            path = self.save()
            self.say(
                f"\nStopped after step {self.step} of {self.total}; {path} is saved. To go on: the "
                "same command with --resume_from_checkpoint latest",
                aside=True,
            )
        self.accelerator.end_training()
        return 128 + self.stopped_by

    # ------------------------------------------------------------------------------- telling

    def progress_bar(self) -> tqdm:
        """A bar on a terminal; elsewhere `report` prints lines."""
        show = self.accelerator.is_main_process and sys.stderr.isatty()
        return tqdm(total=self.total, initial=self.step, disable=not show, desc="steps")

    def report(self, bar: tqdm, since: int, clock: float) -> None:
        """Loss and speed of the steps after `since`, which began at `clock`: a bar or a line."""
        self.look()
        losses = self.losses[since : self.step].tolist()  # waits for the GPU
        pace = (time.perf_counter() - clock) / len(losses)
        rates = [self.rate(step) for step in range(since, self.step)]
        mean = running_mean(losses, len(losses))[-1]
        bar.update(len(losses))
        bar.set_postfix(loss=f"{mean:.4f}", lr=f"{rates[-1]:.1e}", refresh=False)
        if bar.disable:
            left = round((self.total - self.step) * pace)
            self.say(
                f"step {self.step}/{self.total}: loss {mean:.4f}, lr {rates[-1]:.1e}, "
                f"{self.images_a_step() / pace:.1f} images/s, {left // 60}:{left % 60:02d} left",
                aside=True,
            )
        if self.accelerator.is_main_process:
            events.progress(self.step, self.total)
        for i, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
            self.accelerator.log({"loss": loss, "lr": rate}, step=since + i)

    def images_a_step(self) -> int:
        args = self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps
        return batch * self.accelerator.num_processes

    def summarise(self, steps: int, seconds: float) -> None:
        memory = ""
        if self.device.type == "cuda":
            events.peak_memory(torch.cuda.max_memory_allocated(self.device))
            memory = f", at most {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"
        self.say(
            f"{steps} steps in {seconds:.1f} s: {1000 * seconds / steps:.0f} ms a step, "
            f"{self.images_a_step() * steps / seconds:.1f} images/s{memory}"
        )

    # ------------------------------------------------------------------------------- writing

    def write_on_the_way(self) -> None:
        """What is due after this step."""
        args, step = self.args, self.step
        if step % args.checkpointing_steps == 0:
            self.save()
        if step % args.save_steps == 0:
            self.write_rows(f"learned_embeds-steps-{step}")
        if self.validate_every and step % self.validate_every == 0 and step < self.total:
            self.validate()

    def write_rows(self, stem: str) -> list[Path]:
        args = self.args
        self.look()
        return write_learned(
            self.folder, stem, args.placeholder_token, self.rows, not args.no_safe_serialization
        )

    @torch.no_grad()
    def validate(self) -> None:
        """A training picture and samples with the word -> validation/step-N.png, trackers."""
        args, models = self.args, self.models
        if not args.num_validation_images:
            return
        samples = sample_pictures(
            models,
            models.text_encoder(self.validation_ids)[0],
            args.num_validation_images,
            args.resolution,
            self.seed,
        )
        given = self.pictures[0].permute(1, 2, 0).numpy()
        path = self.folder / "validation" / f"step-{self.step:06d}.png"
        write_row(path, [given, *samples])
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": samples}, step=self.step, **layout)
        self.say(f"pictures at step {self.step}: {path}")

    def finish(self) -> None:
        """The final files."""
        args = self.args
        written = self.write_rows("learned_embeds")
        rates = [self.rate(step) for step in range(self.total)]
        write_loss_curve(self.folder, self.losses.tolist(), rates)
        self.validate()
        if args.save_as_full_pipeline:
            self.write_pipeline()
        if self.repository:
            address = push(
                self.folder,
                self.repository,
                args.hub_token,
                model=args.pretrained_model_name_or_path,
                word=args.placeholder_token,
            )
            self.say(f"pushed to {address}")
        self.say(f"wrote {' and '.join(str(path) for path in written)}", aside=True)

    def write_pipeline(self) -> None:
        """The whole model, with the word in its tokenizer and text encoder."""
        models = self.models
        pipeline = StableDiffusionPipeline(
            vae=models.vae,
            text_encoder=self.source.load(CLIPTextModel, "text_encoder", torch.float32),
            tokenizer=models.tokenizer,
            unet=models.unet,
            scheduler=models.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.load_textual_inversion({self.args.placeholder_token: self.rows.detach().cpu()})
        pipeline.save_pretrained(self.folder)
