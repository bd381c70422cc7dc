"""Trained toy models as ordinary diffusers folders, float16, readable by old and new libraries.

(transformers 4.28 needs vocab.json, merges.txt and the `text_model.` prefix of CLIP's weights.)
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel

from .captions import VERBS, WORDS
from .characters import SPECIES
from .random_priors import (
    END,
    FEATURE_EXTRACTOR,
    SCHEDULER,
    START,
    ZERO123_INDEX,
    byte_pairs,
    text_index,
    write_json,
)
from .random_priors import write_tokenizer as write_tokenizer_files
from .rectified_flow import SHIFT

__all__ = ["FEATURE_EXTRACTOR", "SCHEDULER", "byte_pairs"]

FLOW_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
}
FLOW_INDEX = {
    "_class_name": "WanPipeline",
    "expand_timesteps": True,  # the first frame may be clean
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}

# diffusers and transformers annotate what their models give as unions with plain tuples, which no
# type checker can follow
Network = Any
MAX_TOKENS = 32  # of a prompt, start and end included


def text_config(vocabulary: list[str], width: int) -> dict:
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary.index(START),
        "eos_token_id": vocabulary.index(END),
        "pad_token_id": vocabulary.index(END),
    }


def vision_config(width: int, image_size: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    }


def write_words(path: Path) -> None:
    """What a person may ask the toy priors for."""
    write_json(path, {"words": WORDS, "subjects": [*SPECIES], "motions": [*VERBS.values()]})


def write_tokenizer(folder: Path, vocabulary: list[str], merges: list[tuple[str, str]]) -> None:
    write_tokenizer_files(folder, vocabulary, merges, MAX_TOKENS)


def half_weights(module: Network, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict in float16 on the CPU, every key with the prefix (once)."""
    return {
        prefix + key.removeprefix(prefix): value.detach().half().cpu().contiguous()
        for key, value in module.state_dict().items()
        if value.is_floating_point()
    }


def write_diffusers(folder: Path, module: Network) -> None:
    copy.deepcopy(module).half().cpu().save_pretrained(folder)


def write_clip(folder: Path, module: Network, kind: str, prefix: str) -> None:
    """config.json and weights of a CLIP tower; `kind` is its model_type."""
    config = {k: v for k, v in module.config.to_diff_dict().items() if not k.startswith("_")}
    config |= {"architectures": [type(module).__name__], "model_type": kind}
    write_json(folder / "config.json", {**config, "torch_dtype": "float16"})
    save_file(half_weights(module, prefix), folder / "model.safetensors", {"format": "pt"})


def write_text_folder(
    folder: Path,
    words: tuple[list[str], list[tuple[str, str]]],
    text: Network,
    unet: Network,
    vae: Network,
) -> None:
    """A text-to-image or text-to-video folder."""
    write_tokenizer(folder / "tokenizer", *words)
    write_clip(folder / "text_encoder", text, "clip_text_model", "text_model.")
    write_diffusers(folder / "unet", unet)
    write_diffusers(folder / "vae", vae)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    clip = "3D" in type(unet).__name__
    pipeline = "TextToVideoSDPipeline" if clip else "StableDiffusionPipeline"
    write_json(folder / "model_index.json", text_index(pipeline, type(unet).__name__))


def write_flow(folder: Path, text_folder: Path, net: Network, vae: Network) -> None:
    """A folder like Wan 2.2's, with the tokenizer and the text encoder of another one."""
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(text_folder / name, folder / name, dirs_exist_ok=True)
    write_diffusers(folder / "transformer", net)
    write_diffusers(folder / "vae", vae)
    write_json(folder / "scheduler" / "scheduler_config.json", FLOW_SCHEDULER)
    write_json(folder / "model_index.json", FLOW_INDEX)


def read_text_folder(folder: Path, device: str) -> tuple[Network, Network, Network]:
    """The autoencoder, the text encoder and the UNet of a text-to-video folder, frozen, float32."""
    kinds: list[tuple[Network, str]] = [
        (AutoencoderKL, "vae"),
        (CLIPTextModel, "text_encoder"),
        (UNet3DConditionModel, "unet"),
    ]
    vae, text, unet = (
        kind.from_pretrained(folder, subfolder=name).float().to(device).eval().requires_grad_(False)
        for kind, name in kinds
    )
    return vae, text, unet


def write_zero123(
    folder: Path, eye: Network, camera: nn.Linear, unet: Network, vae: Network
) -> None:
    write_diffusers(folder / "unet", unet)
    write_diffusers(folder / "vae", vae)
    write_clip(folder / "image_encoder", eye, "clip_vision_model", "")
    projection = folder / "clip_camera_projection"
    config = {"embedding_dim": camera.out_features, "additional_embeddings": 4}
    write_json(projection / "config.json", {"_class_name": "CLIPCameraProjection", **config})
    weights = half_weights(nn.ModuleDict({"proj": camera}))
    save_file(weights, projection / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    side = eye.config.image_size
    pixels = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    write_json(
        folder / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR | pixels
    )
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", ZERO123_INDEX)
