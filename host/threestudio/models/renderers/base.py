"""Renderers: rays -> images, from a geometry, a material and a background."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.base import BaseModule
from threestudio.utils.bounds import bounded
from torch import Tensor


@dataclass
class SubModules:
    """What a renderer or exporter draws on; no torch module, since the system owns these."""

    geometry: BaseImplicitGeometry
    material: BaseMaterial
    background: BaseBackground


class Renderer(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        radius: float = bounded(1.0, above=0)  # half the side of the box that is rendered

    cfg: Config

    def configure(
        self, geometry: BaseImplicitGeometry, material: BaseMaterial, background: BaseBackground
    ) -> None:
        self.sub_modules = SubModules(geometry, material, background)
        r = self.cfg.radius
        self.bbox: Float[Tensor, "2 3"]
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))

    def forward(self, *args, **kwargs) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def geometry(self) -> BaseImplicitGeometry:
        return self.sub_modules.geometry

    @property
    def material(self) -> BaseMaterial:
        return self.sub_modules.material

    @property
    def background(self) -> BaseBackground:
        return self.sub_modules.background

    def set_geometry(self, geometry: BaseImplicitGeometry) -> None:
        self.sub_modules.geometry = geometry

    def set_material(self, material: BaseMaterial) -> None:
        self.sub_modules.material = material

    def set_background(self, background: BaseBackground) -> None:
        self.sub_modules.background = background


class VolumeRenderer(Renderer):
    """Renders by integrating along rays."""


class Rasterizer(Renderer):
    """Renders by drawing triangles."""
