"""Video prior that is shown the clip's first frame: a text-to-video model whose UNet was trained on
with that frame's latents beside those of every noisy frame. Guidance is uncond + scale (text -
uncond) with scale 2, one t a clip in 0.02..0.98 of the timesteps, w(t) = 1 - alpha_bar.

The first frame is the rendered one or the given picture (first_frames.py): the VAE's mode, scaled.
Both halves see it; the unconditional one lacks the text alone, so that guidance pulls at the motion
and not at the looks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded, path_of
from . import sds
from .clips import FramewiseDistillation
from .conditions import Condition, both
from .first_frames import RENDERED, FirstFrameDistillation


@threestudio.register("animate124-image-to-video-guidance")
class ImageToVideoGuidance(FirstFrameDistillation, FramewiseDistillation):
    """A clip is one sample: [B*F H W 3], frames of a clip adjacent -> latents [B 4 F h w]."""

    @dataclass
    class Config(FirstFrameDistillation.Config, FramewiseDistillation.Config):
        # of the VAE, text encoder and scheduler
        pretrained_model_name_or_path: str = path_of("model")
        unet_name_or_path: str = path_of("model")  # folder or hub id of the UNet alone
        guidance_scale: float = 2.0  # of classifier-free guidance
        weighting_strategy: str = bounded("sds", names=tuple(sds.WEIGHTS))  # w(t) = 1 - alpha_bar
        first_frame: str = bounded(RENDERED, names=(RENDERED,))  # the network knows no clip without

    cfg: Config
    extra_channels: ClassVar[int] = 4
    only_text_differs: ClassVar[bool] = True

    @property
    def network_place(self) -> tuple[str, str]:
        return self.cfg.unet_name_or_path, ""

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        first = self.codec.encode(self.shown_frames(clips, camera), mode=True)
        return {"channels": both(first[:, :, None].expand(-1, -1, clips.shape[1], -1, -1))}
