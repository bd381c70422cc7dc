"""Video prior that is shown the clip's first frame: SkyReels V2's image-to-video model (Chen et al.
2025), 1.3B, a Wan. Guidance is uncond + scale (text - uncond) with scale 5, one t a clip in
0.02..0.98 of the way, shifted as the model's sampler does, w(t) = 1 - alpha_bar.

The first frame is seen twice, by both halves: as latents beside the noisy ones, of a clip that is
grey behind it (the mode of the VAE's posterior, normalised), with four channels that are 1 for its
latent frame; and as CLIP's patches (the layer before the last), which cross-attention reads beside
the text. The network knows no clip without one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from ..bounds import bounded, path_of
from ..pretrained.models import model_folder
from .conditions import Condition, both
from .first_frames import RENDERED, FirstFrameDistillation
from .latents import centre_square
from .wan_clips import WanDistillation, grey_behind
from .zero123_model import clip_pixels, read_clip_settings


@threestudio.register("animate124-skyreels-guidance")
class SkyReelsGuidance(FirstFrameDistillation, WanDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 16 k+1 h w]."""

    @dataclass
    class Config(FirstFrameDistillation.Config, WanDistillation.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers"
        )
        guidance_scale: float = 5.0  # of classifier-free guidance
        first_frame: str = bounded(RENDERED, names=(RENDERED,))  # the network knows no clip without

    cfg: Config
    network_class: ClassVar[type | str] = "SkyReelsV2Transformer3DModel"
    extra_channels: ClassVar[int] = 20  # four for the mask, and the frame's latents

    def configure(self) -> None:
        super().configure()
        model = self.cfg.pretrained_model_name_or_path
        self.image_encoder = self.load(CLIPVisionModelWithProjection, model, "image_encoder")
        folder = model_folder(model, "image_processor") / "image_processor"
        self.clip_settings = read_clip_settings(folder / "preprocessor_config.json")

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        frames = self.shown_frames(clips, camera)
        latents = self.codec.encode_clips(grey_behind(frames, clips.shape[1]), mode=True)
        mask = torch.zeros_like(latents[:, : self.frame_factor])
        mask[:, :, 0] = 1
        pixels = clip_pixels(centre_square(frames), self.clip_settings).to(self.dtype)
        seen = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        channels = torch.cat([mask, latents], dim=1)
        return {"channels": both(channels), "image": both(seen.float())}

    def further_inputs(self, condition: Condition) -> dict[str, Tensor]:
        return {"encoder_hidden_states_image": condition["image"]}
