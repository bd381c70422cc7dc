"""Colour straight from the features: no light."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from threestudio.models.materials.base import BaseMaterial
from threestudio.registry import register
from threestudio.utils.bounds import bounded
from threestudio.utils.ops import get_activation
from torch import Tensor


@register("no-material")
class NoMaterial(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        n_output_dims: int = bounded(3, 1, 2**16)  # channels of the features, and of the colour
        color_activation: str = "sigmoid"  # takes the features to colours
        requires_normal: bool = (
            False  # the geometry's normals are wanted, for their own picture or loss
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            get_activation(self.color_activation)

    cfg: Config

    def configure(self) -> None:
        self.requires_normal = self.cfg.requires_normal
        self.channels = self.cfg.n_output_dims  # once: reading a config takes 20 us
        self.activation = get_activation(self.cfg.color_activation)

    def forward(self, features: Float[Tensor, "*B Nf"], **kwargs) -> Float[Tensor, "*B Nc"]:
        if features.shape[-1] != self.channels:
            raise ValueError(
                f"The geometry gives {features.shape[-1]} features, the material wants "
                f"{self.channels}: "
                "set geometry.n_feature_dims and material.n_output_dims to the same number."
            )
        return self.activation(features)

    def export(self, features: Float[Tensor, "*N Nf"], **kwargs) -> dict[str, Any]:
        return {"albedo": self(features, **kwargs).clamp(0, 1)[..., :3]}
