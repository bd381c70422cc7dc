"""Materials: what a point looks like, from its features (and normal, light, ...)."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from threestudio.utils.base import BaseModule
from torch import Tensor


class BaseMaterial(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config
    requires_normal: bool = False  # tells the renderer to ask the geometry for normals
    requires_tangent: bool = False  # likewise for tangents

    def forward(self, *args, **kwargs) -> Float[Tensor, "*B 3"]:
        raise NotImplementedError

    def export(self, *args, **kwargs) -> dict[str, Any]:
        """Override to give textures' values (such as `albedo` [*N 3])."""
        return {}
