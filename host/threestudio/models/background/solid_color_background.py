"""One colour everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from jaxtyping import Float
from threestudio.models.background.base import BaseBackground
from threestudio.registry import register
from threestudio.utils.bounds import bounded
from torch import Tensor


@register("solid-color-background")
class SolidColorBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = bounded(3, 1, 2**16)  # channels
        color: tuple = bounded((1.0, 1.0, 1.0), 0, 1)
        learned: bool = False  # train the colour
        random_aug: bool = False  # while training, sometimes another colour for each image
        random_aug_prob: float = bounded(0.5, 0, 1)  # how often

        def __post_init__(self) -> None:
            super().__post_init__()
            if not isinstance(self.color, Sequence):
                raise ValueError(f"color is {self.color}, but has to be numbers, as [1, 1, 1].")
            if len(self.color) not in (1, self.n_output_dims):
                raise ValueError(
                    f"color has {len(self.color)} channels, n_output_dims is {self.n_output_dims}."
                )

    cfg: Config

    def configure(self) -> None:
        color = torch.tensor(list(self.cfg.color), dtype=torch.float32)
        self.channels = self.cfg.n_output_dims  # once: reading a config takes 20 us
        self.random_aug = self.cfg.random_aug
        self.env_color: Float[Tensor, " Nc"]
        if self.cfg.learned:
            self.env_color = nn.Parameter(color)
        else:
            self.register_buffer("env_color", color)

    def forward(self, dirs: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W Nc"]:
        shape = (*dirs.shape[:-1], self.channels)
        color = self.env_color.to(dirs).expand(shape)
        if self.training and self.random_aug and torch.rand(()) < self.cfg.random_aug_prob:
            other = torch.rand(dirs.shape[0], 1, 1, self.channels).to(dirs)
            color = color * 0 + other  # `* 0`: in DDP a learned colour must take part in every step
        return color
