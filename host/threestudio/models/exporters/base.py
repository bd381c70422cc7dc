"""Exporters: a trained scene -> files, which the system saves."""

from dataclasses import dataclass
from typing import Any

from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import SubModules
from threestudio.registry import register
from threestudio.utils.base import BaseObject


@dataclass
class ExporterOutput:
    """One file: the system calls its `save_<save_type>` with the name and the parameters."""

    save_name: str
    save_type: str
    params: dict[str, Any]


class Exporter(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False  # also render the test trajectory

    cfg: Config

    def configure(
        self, geometry: BaseImplicitGeometry, material: BaseMaterial, background: BaseBackground
    ) -> None:
        self.sub_modules = SubModules(geometry, material, background)

    @property
    def geometry(self) -> BaseImplicitGeometry:
        return self.sub_modules.geometry

    @property
    def material(self) -> BaseMaterial:
        return self.sub_modules.material

    @property
    def background(self) -> BaseBackground:
        return self.sub_modules.background

    def __call__(self, *args, **kwargs) -> list[ExporterOutput]:
        raise NotImplementedError


@register("dummy-exporter")
class DummyExporter(Exporter):
    """Exports nothing."""

    def __call__(self, *args, **kwargs) -> list[ExporterOutput]:
        return []
