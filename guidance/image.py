"""Image prior: Stable Diffusion. Guidance is uncond + scale (text - uncond) with scale 100, t in
0.2..0.6 of the timesteps, w(t) = 1 - sqrt(alpha_bar). Prompts are view-dependent.
"""

from dataclasses import dataclass
from typing import Any

import threestudio
from jaxtyping import Float
from torch import Tensor

from .distillation import Condition, PromptedDistillation
from .latents import resize


@threestudio.register("animate124-image-guidance")
class ImageGuidance(PromptedDistillation):
    """Each image is one sample: [N H W 3] -> latents [N 4 size/8 size/8]."""

    @dataclass
    class Config(PromptedDistillation.Config):
        pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        guidance_scale: float = 100.0  # of classifier-free guidance
        min_step_percent: Any = 0.2  # first timestep, fraction of all; a number or a C list
        max_step_percent: Any = 0.6  # last timestep, fraction of all; a number or a C list
        weighting_strategy: str = "dreamfusion"  # w(t) = 1 - sqrt(alpha_bar)
        size: int = 512  # pixels on a side, of the VAE's input

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self.check_size(size=self.cfg.size)

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "N 4 h w"], Condition]:
        images = resize(images, self.cfg.size, self.cfg.size)
        text = self.text_embeddings(prompt_utils, camera)
        return self.encode(images), {"tokens": text}
