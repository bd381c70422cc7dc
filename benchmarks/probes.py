"""Marks on the GPU's own clock around parts of a training step, and the callback that sets them."""

import collections
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from animate124.renderer import nerf_volume_renderer

KINDS = ("usual", "start")  # of batches, as in `name_of`
PRIORS = {"guidance": "image or video", "guidance_3d": "Zero123", "guidance_cn": "tile"}


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
        """A prior's VAE: forward around `to_latents`, backward from latents to pictures, where a
        gradient goes that way (to a denoised target none does)."""
        inner = prior.to_latents

        def timed(pictures):
            start, ends = mark(), []
            latents = inner(pictures)
            self.spans[f"{label} VAE forward"].append((start, mark()))
            if latents.requires_grad:
                latents.register_hook(lambda grad: ends.append(mark()))
                pictures.register_hook(
                    lambda grad: self.spans[f"{label} VAE backward"].append((ends[0], mark()))
                )
            return latents

        prior.to_latents = timed

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

        def counted_sample(rays, *ahead):
            samples = sample(rays, *ahead)
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
        step["render backward, losses"] = step.pop("backward")
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
                if prior.recorded_score is not None:  # VAE, UNet and gradient as one
                    self.probes.around(prior, "recorded_score", f"{label} recorded")

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
