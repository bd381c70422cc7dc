"""Backgrounds: the colour seen along a ray that meets nothing."""

from dataclasses import dataclass

from jaxtyping import Float
from threestudio.utils.base import BaseModule
from torch import Tensor


class BaseBackground(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    def forward(self, dirs: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W Nc"]:
        raise NotImplementedError
