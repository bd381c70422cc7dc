"""The four priors at their true size with random weights: nothing is downloaded.

`install(folder)` writes the small files of their folders (tokenizers, schedulers) and makes
`pretrained.models.load_component` build networks on the device where it would read weights.
`write(folder)` writes all of them, for processes that read models from folders.
"""

from pathlib import Path
from typing import Any

import torch
from animate124.guidance.zero123_model import CLIPCameraProjection
from animate124.pretrained import models
from animate124.toyworld.random_priors import (
    FEATURE_EXTRACTOR,
    SCHEDULER,
    WORDS,
    ZERO123_INDEX,
    byte_pairs,
    text_index,
    write_json,
    write_tokenizer,
)
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

WIDTHS = (320, 640, 1280, 1280)
UNET_2D = {
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": WIDTHS,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
UNET_3D = {
    "sample_size": 32,
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    "block_out_channels": WIDTHS,
    "attention_head_dim": 64,
    "cross_attention_dim": 1024,
}
CONTROLNET = {
    "down_block_types": UNET_2D["down_block_types"],
    "block_out_channels": WIDTHS,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
TEXT_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
TEXT_H = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
VISION_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
COMPONENTS: dict[tuple[str, str], tuple[type, dict]] = {  # (model, subfolder): class and config
    ("sd", "unet"): (UNet2DConditionModel, UNET_2D),
    ("sd", "vae"): (AutoencoderKL, VAE),
    ("sd", "text_encoder"): (CLIPTextModel, TEXT_L),
    ("zero123", "unet"): (UNet2DConditionModel, {**UNET_2D, "in_channels": 8}),
    ("zero123", "vae"): (AutoencoderKL, VAE),
    ("zero123", "image_encoder"): (CLIPVisionModelWithProjection, VISION_L),
    ("zero123", "clip_camera_projection"): (CLIPCameraProjection, {"embedding_dim": 768}),
    ("text-to-video", "unet"): (UNet3DConditionModel, UNET_3D),
    ("text-to-video", "vae"): (AutoencoderKL, VAE),
    ("text-to-video", "text_encoder"): (CLIPTextModel, TEXT_H),
    ("controlnet-tile", ""): (ControlNetModel, CONTROLNET),
}


def build(kind: type, config: dict) -> nn.Module:
    """A model from its config, on torch's current device, with its own initialisation."""
    if hasattr(kind, "config_class"):  # transformers
        return kind(kind.config_class(**config))
    return kind(**config)


def make(model: str, subfolder: str, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    kind, config = COMPONENTS[model, subfolder]
    with torch.device(device):
        made = build(kind, config)
    if kind is ControlNetModel:  # its last layers start at 0
        for parameter in made.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=1e-2)
    return made.to(dtype).requires_grad_(False).eval()


def write_small_files(folder: Path) -> None:
    """Configs, tokenizers and schedulers: what is in the priors' folders beside their weights."""
    vocabulary, merges = byte_pairs(WORDS.split())
    for name in ("sd", "text-to-video"):
        write_tokenizer(folder / name / "tokenizer", vocabulary, merges)
    for name, subfolder in COMPONENTS:
        # embeddings are cached by these folders' contents
        write_json(folder / name / subfolder / "config.json", COMPONENTS[name, subfolder][1])
        write_json(folder / name / "scheduler" / "scheduler_config.json", SCHEDULER)
    size = {"height": 224, "width": 224}
    extractor = {**FEATURE_EXTRACTOR, "size": {"shortest_edge": 224}, "crop_size": size}
    write_json(folder / "zero123" / "feature_extractor" / "preprocessor_config.json", extractor)


def write(folder: Path, device: torch.device | str) -> None:
    """The four priors' folders with their weights, in float16: 9 GB."""
    write_small_files(folder)
    for name, subfolder in COMPONENTS:
        model: Any = make(name, subfolder, torch.float16, device)
        model.save_pretrained(folder / name / subfolder)
    unets = {"sd": "UNet2DConditionModel", "text-to-video": "UNet3DConditionModel"}
    pipelines = {"sd": "StableDiffusionPipeline", "text-to-video": "TextToVideoSDPipeline"}
    for name, unet in unets.items():
        write_json(folder / name / "model_index.json", text_index(pipelines[name], unet))
    write_json(folder / "zero123" / "model_index.json", ZERO123_INDEX)


def install(folder: Path, device: torch.device | str) -> None:
    """Folders that only have small files, and a `load_component` that makes the rest."""
    write_small_files(folder)
    read = models.load_component

    def load_component(kind: type, model: str, subfolder: str = "", dtype: Any = None) -> Any:
        if dtype is None:
            return read(kind, model, subfolder)
        return make(Path(model).name, subfolder, dtype, device)

    models.load_component = load_component
