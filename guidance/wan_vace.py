"""Video prior that is shown the clip's first frame: Wan 2.1's VACE model (Jiang et al. 2025), 1.3B.
Guidance is uncond + scale (text - uncond) with scale 5, one t a clip in 0.02..0.98 of the way,
shifted as the model's sampler does, w(t) = 1 - alpha_bar.

A branch beside some of the network's blocks reads what is kept of a clip, what changes, and a mask
that is 1 where it changes. Kept is the first frame, grey behind it; what changes is all grey; both
are modes of the VAE's posterior, normalised. The mask has a channel for each pixel of a latent and
is that of the pixel frame nearest to the latent one (as the model's pipeline has it), which for a
single frame kept is one behind it: it says so of single pictures alone. Both halves see the same.
Without a first frame (`first_frame: none`) all of the clip is grey and changes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..bounds import path_of
from .conditions import Condition, both
from .first_frames import FirstFrameDistillation
from .wan_clips import WanDistillation, grey_behind


@threestudio.register("animate124-wan-vace-guidance")
class WanVaceGuidance(FirstFrameDistillation, WanDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 16 k+1 h w]."""

    @dataclass
    class Config(FirstFrameDistillation.Config, WanDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "Wan-AI/Wan2.1-VACE-1.3B-diffusers")
        guidance_scale: float = 5.0  # of classifier-free guidance

    cfg: Config
    network_class: ClassVar[type | str] = "WanVACETransformer3DModel"

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        frames, length = self.first_frames(clips, camera), clips.shape[1]
        changes = torch.ones(1, 1, length, device=clips.device)
        grey = grey_behind(torch.full_like(clips[:, 0], 0.5), length)
        changing = kept = self.codec.encode_clips(grey, mode=True)
        if frames is not None:
            changes[..., 0] = 0
            kept = self.codec.encode_clips(grey_behind(frames, length), mode=True)
        n_latents, height, width = kept.shape[2:]
        mask = F.interpolate(changes, n_latents, mode="nearest-exact")[..., None, None]
        mask = mask.expand(len(clips), self.codec.pixel_factor**2, -1, height, width)
        return {"control": both(torch.cat([kept, changing, mask], dim=1))}

    def further_inputs(self, condition: Condition) -> dict[str, Tensor]:
        return {"control_hidden_states": condition["control"]}
