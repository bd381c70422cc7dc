"""Prompts for LTX-Video, with its own text encoder (T5-XXL in the real model)."""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .prompts import PromptProcessor


@threestudio.register("animate124-ltx-prompt-processor")
class LTXPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of("model", "Lightricks/LTX-Video")

    cfg: Config
    text_length = 128
