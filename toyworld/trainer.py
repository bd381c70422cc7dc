"""The loop that trains one part of the toy priors."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files.whole import whole_file
from .plan import Plan


class Trainer:
    """Trains one part: AdamW with cosine decay, averaged weights, state on disk.

    On a GPU a whole step is one CUDA graph: these models are so small that launching their kernels
    one by one takes longer than running them.
    """

    def __init__(self, name: str, plan: Plan, modules: dict[str, nn.Module], work: Path) -> None:
        self.name, self.steps, self.work = name, plan.steps[name], work
        self.modules = nn.ModuleDict(modules)
        self.parameters: list[Tensor] = [p for p in self.modules.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.device = self.parameters[0].device
        self.peak = plan.learning_rate
        cuda = self.device.type == "cuda"
        self.rate = torch.tensor(self.peak, device=self.device) if cuda else self.peak
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=1e-2, fused=True, capturable=cuda
        )
        self.step = 0

    @property
    def state_file(self) -> Path:
        return self.work / f"{self.name}.pt"

    def resume(self) -> None:
        """Goes on from the last state, if there is one."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for average, value in zip(self.average, state["average"], strict=True):
            average.copy_(value)
        self.step = state["step"]
        if self.step < self.steps:
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:  # the tensor that set_rate fills
                group["lr"] = self.rate

    def save(self) -> None:
        state = {"modules": self.modules.state_dict(), "average": self.average, "step": self.step}
        state["optimizer"] = self.optimizer.state_dict()
        with whole_file(self.state_file) as part, part.open("wb") as file:
            torch.save(state, file)

    def set_rate(self) -> None:
        warm_up = min(1.0, (self.step + 1) / (0.03 * self.steps))
        rate = self.peak * warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def one_step(self, loss_function: Callable[[], Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = loss_function()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        averaged = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage] (no other name)
        averaged(self.average, self.parameters, 1 / 500)
        return loss.detach()

    def graphed(self, loss_function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that does one step by replaying it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a capture wants warm libraries and allocated gradients
            for _ in range(3):
                self.one_step(loss_function)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.one_step(loss_function)

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay

    def fit(self, loss_function: Callable[[], Tensor], seed: int, log: Callable) -> None:
        """Trains to the end (or not at all, if it was done), then puts the averages in place."""
        self.resume()
        self.modules.train()
        torch.manual_seed(seed + self.step)
        if self.step < self.steps:
            self.set_rate()
            cuda = self.device.type == "cuda"
            step = self.graphed(loss_function) if cuda else lambda: self.one_step(loss_function)
            started, recent = time.time(), []
            bar = tqdm(range(self.step, self.steps), desc=self.name, mininterval=5)
            for self.step in bar:
                self.set_rate()
                loss = step()
                if self.step % 50 == 0:
                    recent.append(loss.item())
                    log(self.name, self.step, recent[-1])
                    bar.set_postfix(loss=f"{sum(recent[-10:]) / len(recent[-10:]):.4f}")
                if (self.step + 1) % 500 == 0:
                    self.step += 1
                    self.save()
            self.step = self.steps
            self.save()
            print(f"{self.name}: {self.steps} steps, {time.time() - started:.0f} s", flush=True)
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)
        self.modules.eval().requires_grad_(False)
