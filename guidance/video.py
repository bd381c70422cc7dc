"""Video prior: ModelScope's text-to-video or ZeroScope. Guidance is text + scale (text - uncond)
with scale 100, one t a clip in 0.02..0.98 of the timesteps, w(t) = 1 - alpha_bar. A clip's prompt
is that of its first frame's camera.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
from diffusers import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded, path_of
from . import sds
from .distillation import Condition, PromptedDistillation
from .latents import clip_length, encode_clips, resize


@threestudio.register("animate124-zeroscope-guidance")
class VideoGuidance(PromptedDistillation):
    """A clip is one sample: [B*F H W 3], frames of a clip adjacent -> latents [B 4 F h w]."""

    @dataclass
    class Config(PromptedDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "damo-vilab/text-to-video-ms-1.7b")
        guidance_scale: float = 100.0  # of classifier-free guidance
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        weighting_strategy: str = bounded("sds", names=tuple(sds.WEIGHTS))  # w(t) = 1 - alpha_bar
        width: int = bounded(256, 1, 2**14)  # pixels, of the VAE's input (ZeroScope: 576)
        height: int = bounded(256, 1, 2**14)  # pixels, of the VAE's input (ZeroScope: 320)
        # frames of a clip that keep the VAE graph; -1 keeps all
        low_ram_vae: int = bounded(-1, 1, 2**16, names=(-1,))

    cfg: Config
    unet_class: ClassVar[type] = UNet3DConditionModel
    cfg_start: ClassVar[str] = "cond"

    def configure(self) -> None:
        super().configure()
        self.check_size(width=self.cfg.width, height=self.cfg.height)

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B 4 F h w"], Condition]:
        length = clip_length(len(images), camera.get("num_frames"))
        frames = resize(images, self.cfg.height, self.cfg.width)
        text = self.text_embeddings(prompt_utils, camera, slice(None, None, length))
        clips = frames.unflatten(0, (-1, length))
        latents = encode_clips(self.vae, clips, self.cfg.low_ram_vae, self.cfg.vae_chunk)
        return latents, {"tokens": text}
