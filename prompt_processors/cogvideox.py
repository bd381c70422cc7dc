"""Prompts for CogVideoX, with its own text encoder (T5-XXL in the real models)."""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .prompts import PromptProcessor


@threestudio.register("animate124-cogvideox-prompt-processor")
class CogVideoXPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of("model", "THUDM/CogVideoX-2b")

    cfg: Config
    text_length = 226
