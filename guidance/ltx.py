"""Video prior that is shown the clip's first frame: LTX-Video (HaCohen et al. 2024), 2B. Guidance
is uncond + scale (text - uncond) with scale 5, one t a clip in 0.02..0.98 of the way, w(t) = 1 -
alpha_bar. The way is shifted as the model's sampler does, which is by more for longer clips and
larger frames; that it stops at 0.1 while it samples is left out.

The first latent frame is the clean one of the first frame alone: a sample of the VAE's posterior,
as the model's pipeline has it. It has time 0, whose tokens are told so, and it gets no gradient.
Both halves see it. Without a first frame (`first_frame: none`) all of the clip has noise, and the
model is one of text alone.

Latents are 128 channels of 1 + (F - 1) / 8 frames and 1 / 32 of the pixels on a side, each a token.
The text is T5's, 128 tokens; the network doesn't see the padding.
"""

from dataclasses import dataclass
from typing import ClassVar

import threestudio
from jaxtyping import Float, Shaped
from torch import Tensor

from ..bounds import bounded, path_of
from .conditions import Condition
from .first_frames import CleanFirstFrameDistillation
from .flow_clips import FlowDistillation


@threestudio.register("animate124-ltx-guidance")
class LTXGuidance(CleanFirstFrameDistillation, FlowDistillation):
    """A clip is one sample: [B*F H W 3], F = 8k + 1 frames of a clip adjacent -> latents
    [B 128 k+1 h w]."""

    @dataclass
    class Config(CleanFirstFrameDistillation.Config, FlowDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "Lightricks/LTX-Video")
        guidance_scale: float = 5.0  # of classifier-free guidance
        frame_rate: float = bounded(25.0, above=0)  # frames a second, as the network takes the clip

    cfg: Config
    first_mode: ClassVar[bool] = False
    network_class: ClassVar[type | str] = "LTXVideoTransformer3DModel"
    vae_class: ClassVar[str] = "AutoencoderKLLTXVideo"
    frame_factor: ClassVar[int] = 8

    def predict_noise(
        self, z_t: Float[Tensor, "B2 c f h w"], t: Shaped[Tensor, " B2 *f"], condition: Condition
    ) -> Float[Tensor, "B2 C f h w"]:
        frames, height, width = z_t.shape[2:]
        if t.ndim == 2:  # a time a frame: the network takes one a token
            t = t.repeat_interleave(height * width, dim=1)
        factor = self.codec.pixel_factor
        answer = self.network(
            hidden_states=z_t.flatten(2).mT.to(self.dtype),
            encoder_hidden_states=condition["tokens"].to(self.dtype),
            timestep=t,
            encoder_attention_mask=condition["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.frame_factor / self.cfg.frame_rate, factor, factor),
            return_dict=False,
        )[0]
        return answer.mT.unflatten(2, (frames, height, width))
