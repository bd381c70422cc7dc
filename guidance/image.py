"""Image prior: Stable Diffusion. Guidance is uncond + scale (text - uncond) with scale 100, t in
0.2..0.6 of the timesteps, w(t) = 1 - sqrt(alpha_bar). Prompts are view-dependent.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded, path_of
from . import sds
from .codecs import ImageCodec
from .conditions import Condition
from .distillation import PromptedDistillation
from .latents import resize


@threestudio.register("animate124-image-guidance")
class ImageGuidance(PromptedDistillation):
    """Each image is one sample: [N H W 3] -> latents [N 4 size/8 size/8]."""

    @dataclass
    class Config(PromptedDistillation.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
        guidance_scale: float = 100.0  # of classifier-free guidance
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.2, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.6, 0, 1, schedule=True)
        weighting_strategy: str = bounded(
            "dreamfusion", names=tuple(sds.WEIGHTS)
        )  # w(t) = 1 - sqrt(alpha_bar)
        size: int = bounded(512, 1, 2**14)  # pixels on a side, of the VAE's input

    cfg: Config
    codec: ImageCodec
    only_text_differs: ClassVar[bool] = True

    def configure(self) -> None:
        super().configure()
        self.codec.check_size(size=self.cfg.size)

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "N 3 S S"], Condition]:
        images = resize(images, self.cfg.size, self.cfg.size)
        return images, self.text_condition(prompt_utils, camera)
