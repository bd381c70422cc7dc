"""What priors of rectified flow over clips share: their noise, as the model's scheduler states it.

Noise is z_s = (1 - s) z + s eps, the network predicts v = eps - z, so that eps_hat - eps =
(1 - s)(v - (eps - z)): distillation of the velocity, of the noise and of the clean latents differ
by their weights alone. s is shifted as the model's sampler shifts it; the network is given 1000 s.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded
from ..pretrained.flow_schedules import flow_schedule
from .clips import CausalDistillation
from .conditions import Condition
from .noise import Noise, RectifiedFlow


class FlowDistillation(CausalDistillation):
    """A transformer of rectified flow: [B*F H W 3] -> latents [B C f h w]."""

    @dataclass
    class Config(CausalDistillation.Config):
        # of the noise levels, above 1: more of them near the noise; null: what the model states
        shift: float | None = bounded(None, above=0)

    cfg: Config

    def load_noise(self, model: str) -> Noise:
        self.schedule = flow_schedule(model)
        return self.noise_of_size(self.schedule.few)

    def noise_of_size(self, tokens: int) -> RectifiedFlow:
        """Of latents of so many tokens, by which some models' shift grows."""
        shift = self.schedule.shift_of(tokens) if self.cfg.shift is None else self.cfg.shift
        return RectifiedFlow(shift, self.schedule.num_timesteps)

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B F 3 Hv Wv"], Condition]:
        clips, condition = super().prepare(images, prompt_utils, camera)
        side = self.codec.pixel_factor * self.patch
        frames = (clips.shape[1] - 1) // self.frame_factor + 1
        self.noise = self.noise_of_size(frames * (self.height // side) * (self.width // side))
        return clips, condition
