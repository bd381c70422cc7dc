"""Video prior: ModelScope's text-to-video or ZeroScope. Guidance is text + scale (text - uncond)
with scale 100, one t a clip in 0.02..0.98 of the timesteps, w(t) = 1 - alpha_bar.
"""

from dataclasses import dataclass
from typing import ClassVar

import threestudio

from ..bounds import bounded, path_of
from . import sds
from .clips import FramewiseDistillation


@threestudio.register("animate124-zeroscope-guidance")
class VideoGuidance(FramewiseDistillation):
    """A clip is one sample: [B*F H W 3], frames of a clip adjacent -> latents [B 4 F h w]."""

    @dataclass
    class Config(FramewiseDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "damo-vilab/text-to-video-ms-1.7b")
        guidance_scale: float = 100.0  # of classifier-free guidance
        weighting_strategy: str = bounded("sds", names=tuple(sds.WEIGHTS))  # w(t) = 1 - alpha_bar

    cfg: Config
    cfg_start: ClassVar[str] = "cond"
    only_text_differs: ClassVar[bool] = True
