"""What priors of Wan's transformer share. It reads UMT5's text, 512 tokens whose padding is zeros,
all of which it sees, and is given 1000 s as its time; diffusers' samplers round that down.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..pretrained.models import stated_pipeline
from .conditions import Condition
from .flow_clips import FlowDistillation


def grey_behind(first: Float[Tensor, "B 3 H W"], n_frames: int) -> Float[Tensor, "B F 3 H W"]:
    """Clips of that first frame, grey behind it."""
    grey = torch.full_like(first, 0.5)
    return torch.stack([first] + [grey] * (n_frames - 1), dim=1)


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
            **{name: x.to(self.dtype) for name, x in self.further_inputs(condition).items()},
            return_dict=False,
        )[0]

    def further_inputs(self, condition: Condition) -> dict[str, Tensor]:
        """What the network takes besides, by its argument."""
        return {}
