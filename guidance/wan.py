"""Video prior: Wan 2.1's text-to-video model (Wan et al. 2025), 1.3B. Guidance is uncond + scale
(text - uncond) with scale 25, one t a clip in 0.02..0.98 of the way, shifted as the model's sampler
does (3 in the published folder), w(t) = 1 - alpha_bar.

Latents are 16 channels of 1 + (F - 1) / 4 frames and an eighth of the pixels, (z - mean) / std of a
sample of the VAE's posterior.
"""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .wan_clips import WanDistillation


@threestudio.register("animate124-wan-guidance")
class WanGuidance(WanDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 16 k+1 h w]."""

    @dataclass
    class Config(WanDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
        guidance_scale: float = 25.0  # of classifier-free guidance

    cfg: Config
