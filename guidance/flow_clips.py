"""What priors of rectified flow over clips share: their noise, as the model's scheduler states it.

Noise is z_s = (1 - s) z + s eps, the network predicts v = eps - z, so that eps_hat - eps =
(1 - s)(v - (eps - z)): distillation of the velocity, of the noise and of the clean latents differ
by their weights alone. s is shifted as the model's sampler shifts it; the network is given 1000 s.
"""

from dataclasses import dataclass

from ..bounds import bounded
from ..pretrained.flow_schedules import flow_schedule
from .clips import CausalDistillation
from .noise import Noise, RectifiedFlow


class FlowDistillation(CausalDistillation):
    """A transformer of rectified flow: [B*F H W 3] -> latents [B C f h w]."""

    @dataclass
    class Config(CausalDistillation.Config):
        # of the noise levels, above 1: more of them near the noise; null: what the model states
        shift: float | None = bounded(None, above=0)

    cfg: Config

    def load_noise(self, model: str) -> Noise:
        schedule = flow_schedule(model)
        shift = schedule.shift if self.cfg.shift is None else self.cfg.shift
        return RectifiedFlow(shift, schedule.num_timesteps)
