"""Prompts for Wan and its kin, with their own text encoder (UMT5-XXL in the real models)."""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .prompts import PromptProcessor


@threestudio.register("animate124-wan-prompt-processor")
class WanPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of("model")

    cfg: Config
    text_length = 512
