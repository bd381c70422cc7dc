"""Prompts for the video prior, with its own text encoder (OpenCLIP's ViT-H in the real models)."""

from dataclasses import dataclass

import threestudio

from ..bounds import path_of
from .prompts import PromptProcessor


@threestudio.register("animate124-zeroscope-prompt-processor")
class VideoPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = path_of("model", "damo-vilab/text-to-video-ms-1.7b")

    cfg: Config
