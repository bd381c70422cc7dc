"""What a run says of its steps while it takes them: a bar on a terminal, elsewhere lines."""

import sys
import time

import torch
from tqdm import tqdm

from .. import events
from .loss_curve import running_mean
from .processes import Processes
from .schedule import pictures_a_step
from .training import Training

LOOK_EVERY = 2.0  # seconds between two looks at the loss; each waits for the GPU


class Progress:
    """Of a training that goes on from the step it is at; a context that ends with the bar."""

    def __init__(self, training: Training, on: Processes):
        self.training, self.on = training, on
        self.pictures = pictures_a_step(training.args, on.count)
        self.first = self.seen = training.step  # steps before these were told
        self.start = self.clock = time.perf_counter()
        show = on.is_main and sys.stderr.isatty()
        self.bar = tqdm(total=training.total, initial=self.first, disable=not show, desc="steps")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def stepped(self) -> None:
        """A step was taken.

        Raises:
            FloatingPointError: see Watch.look.
        """
        step, total = self.training.step, self.training.total
        if step == self.first + 1 < total:  # it may have compiled, or picked kernels
            self.training.look()  # waits
            self.tell()
            self.clock = time.perf_counter()
            if self.training.args.compile:
                self.on.say(f"compile: first step in {self.clock - self.start:.1f} s")
        elif time.perf_counter() - self.clock > LOOK_EVERY or step == total:
            self.report()

    def report(self) -> None:
        """Loss and speed of the steps since the last report."""
        training, since = self.training, self.seen
        training.look()
        losses = training.losses[since : training.step].tolist()  # waits for the GPU
        pace = (time.perf_counter() - self.clock) / len(losses)
        rates = [training.rate(step) for step in range(since, training.step)]
        mean = running_mean(losses, len(losses))[-1]
        self.bar.update(len(losses))
        self.bar.set_postfix(loss=f"{mean:.4f}", lr=f"{rates[-1]:.1e}", refresh=False)
        if self.bar.disable:
            left = round((training.total - training.step) * pace)
            self.on.say(
                f"step {training.step}/{training.total}: loss {mean:.4f}, lr {rates[-1]:.1e}, "
                f"{self.pictures / pace:.1f} images/s, {left // 60}:{left % 60:02d} left",
                aside=True,
            )
        self.tell()
        for i, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
            self.on.accelerator.log({"loss": loss, "lr": rate}, step=since + i)
        self.clock, self.seen = time.perf_counter(), training.step

    def tell(self) -> None:
        """How many steps are done."""
        if self.on.is_main:
            events.progress(self.training.step, self.training.total)

    def summarise(self) -> None:
        """Of all steps, if there were any: their time, and the most memory."""
        steps, seconds = self.training.step - self.first, time.perf_counter() - self.start
        if not steps:
            return
        memory = ""
        if self.on.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.on.device)
            events.peak_memory(most)
            memory = f", at most {most / 2**30:.1f} GiB"
        self.on.say(
            f"{steps} steps in {seconds:.1f} s: {1000 * seconds / steps:.0f} ms a step, "
            f"{self.pictures * steps / seconds:.1f} images/s{memory}"
        )
