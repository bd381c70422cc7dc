"""Video prior: Wan 2.1's text-to-video model (Wan et al. 2025), 1.3B. Guidance is uncond + scale
(text - uncond) with scale 25, one t a clip in 0.02..0.98 of the way, shifted as the model's sampler
does (3 in the published folder), w(t) = 1 - alpha_bar.

Latents are 16 channels of 1 + (F - 1) / 4 frames and an eighth of the pixels, (z - mean) / std of a
sample of the VAE's posterior. The text is UMT5's, 512 tokens whose padding is zeros, all of which
the network reads. It is given 1000 s as its time; diffusers' samplers round that down to a whole
number.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
from jaxtyping import Float, Shaped
from torch import Tensor

from ..bounds import path_of
from ..pretrained.models import stated_pipeline
from .conditions import Condition
from .flow_clips import FlowDistillation


class WanDistillation(FlowDistillation):
    """A Wan transformer, which reads text beside the clip."""

    cfg: FlowDistillation.Config
    network_class: ClassVar[type | str] = "WanTransformer3DModel"

    def configure(self) -> None:
        self.check_pipeline(stated_pipeline(self.cfg.pretrained_model_name_or_path))
        super().configure()

    def check_pipeline(self, stated: dict[str, Any]) -> None:
        """A ValueError where the model's model_index.json is of a model of another kind."""
        if stated.get("boundary_ratio") is not None:
            raise ValueError(
                f"{self.cfg.pretrained_model_name_or_path} has two transformers, for much and for "
                "little noise (Wan 2.2 A14B). One with a single transformer will do: Wan 2.1 "
                "(1.3B), or Wan 2.2 TI2V (5B)."
            )

    def predict_noise(
        self, z_t: Float[Tensor, "B2 c f h w"], t: Shaped[Tensor, " B2 *f"], condition: Condition
    ) -> Float[Tensor, "B2 C f h w"]:
        return self.network(
            hidden_states=z_t.to(self.dtype),
            timestep=t,
            encoder_hidden_states=condition["tokens"].to(self.dtype),
            return_dict=False,
        )[0]


@threestudio.register("animate124-wan-guidance")
class WanGuidance(WanDistillation):
    """A clip is one sample: [B*F H W 3], F = 4k + 1 frames of a clip adjacent -> latents
    [B 16 k+1 h w]."""

    @dataclass
    class Config(WanDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
        guidance_scale: float = 25.0  # of classifier-free guidance

    cfg: Config
