"""threestudio's own names of priors that configs of the original have, for hosts without them: ours
under those names, with the defaults that threestudio's have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import threestudio

from ..bounds import bounded, path_of
from ..guidance.image import ImageGuidance
from ..guidance.zero123 import Zero123Guidance
from ..prompt_processors.view_dependent import ViewDependentPromptProcessor


def register_if_free(name: str) -> Callable[[type], type]:
    """`threestudio.register`, unless the host has a module of that name: it stays what it is."""
    taken = name in threestudio.__modules__
    return (lambda cls: cls) if taken else threestudio.register(name)


@register_if_free("stable-diffusion-prompt-processor")
class StockPrompts(ViewDependentPromptProcessor):
    pass


@register_if_free("stable-diffusion-unified-guidance")
class StockImageGuidance(ImageGuidance):
    @dataclass
    class Config(ImageGuidance.Config):
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)

    cfg: Config


@register_if_free("zero123-unified-guidance")
class StockZero123Guidance(Zero123Guidance):
    @dataclass
    class Config(Zero123Guidance.Config):
        pretrained_model_name_or_path: str = path_of("model", "bennyguo/zero123-diffusers")
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        cond_camera_distance: float = bounded(1.2, 1e-3, 1e3)  # scene units

    cfg: Config
