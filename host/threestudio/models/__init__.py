"""Bases of what a scene is made of, and the stock modules."""

from threestudio.models.background import solid_color_background
from threestudio.models.exporters import base as exporters_base
from threestudio.models.materials import no_material

__all__ = ["exporters_base", "no_material", "solid_color_background"]
