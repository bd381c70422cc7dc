"""Prompts for the image prior, with Stable Diffusion's text encoder."""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .prompts import PromptProcessor


@threestudio.register("animate124-prompt-processor")
class ViewDependentPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )

    cfg: Config
