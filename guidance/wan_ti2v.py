"""Video prior that is shown the clip's first frame: Wan 2.2's TI2V model, 5B. Guidance is uncond +
scale (text - uncond) with scale 5, one t a clip in 0.02..0.98 of the way, shifted as the model's
sampler does (5 in the published folder), w(t) = 1 - alpha_bar.

The first latent frame is the clean one of the first frame alone: the mode of the VAE's posterior,
normalised as all latents. It has time 0, whose tokens are told so; what the network says of it is
no noise, and it gets no gradient. Both halves see it: they differ in the text. Without a first
frame (`first_frame: none`) all of the clip has noise, and the model is one of text alone.

Latents are 48 channels of 1 + (F - 1) / 4 frames and a sixteenth of the pixels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
from jaxtyping import Float, Shaped
from torch import Tensor

from ..bounds import path_of
from .conditions import Condition
from .first_frames import CleanFirstFrameDistillation
from .wan_clips import WanDistillation


@threestudio.register("animate124-wan-ti2v-guidance")
class WanFirstFrameGuidance(CleanFirstFrameDistillation, WanDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 48 k+1 h w]."""

    @dataclass
    class Config(CleanFirstFrameDistillation.Config, WanDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "Wan-AI/Wan2.2-TI2V-5B-Diffusers")
        guidance_scale: float = 5.0  # of classifier-free guidance

    cfg: Config
    first_mode: ClassVar[bool] = True

    def check_pipeline(self, stated: dict[str, Any]) -> None:
        super().check_pipeline(stated)
        if not stated.get("expand_timesteps"):
            raise ValueError(
                f"The model_index.json of {self.cfg.pretrained_model_name_or_path} doesn't say "
                "expand_timesteps: its transformer knows no clean first frame. Wan 2.2 TI2V (5B) "
                "does; animate124-wan-guidance is for Wan 2.1."
            )

    def predict_noise(
        self, z_t: Float[Tensor, "B2 c f h w"], t: Shaped[Tensor, " B2 *f"], condition: Condition
    ) -> Float[Tensor, "B2 C f h w"]:
        if t.ndim == 2:  # a time a frame: the network takes one a token
            height, width = (side // self.patch for side in z_t.shape[-2:])
            t = t.repeat_interleave(height * width, dim=1)
        return super().predict_noise(z_t, t, condition)
