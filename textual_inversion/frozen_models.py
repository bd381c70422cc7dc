"""The models that textual inversion looks through and never changes, from a folder or the hub."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ..pretrained.models import living_id, load_component, weights_dtype


@dataclass(frozen=True)
class FrozenModels:
    """A text-to-image diffusion model; UNet and text encoder may be in half precision."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler  # for its noise levels

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, with start, end and padding."""
        positions = self.text_encoder.config.max_position_embeddings
        return min(self.tokenizer.model_max_length, positions)


@dataclass(frozen=True)
class ModelSource:
    """A folder in diffusers' format, or a hub id with the revision and variant to take."""

    name: str
    revision: str | None = None  # branch, tag or commit
    variant: str | None = None  # of the weight files, such as fp16

    def load(self, kind: type, part: str, dtype: torch.dtype | None = None) -> Any:
        """One component, frozen, in evaluation mode.

        Raises:
            ValueError, OSError: it isn't there.
        """
        return load_component(kind, self.at_revision(part), part, dtype, self.variant)

    def at_revision(self, part: str) -> str:
        """Where `part` lies: the name itself, unless a revision or variant has to be fetched."""
        if self.revision is None and self.variant is None:
            return self.name
        if Path(self.name).expanduser().is_dir():
            if self.revision:
                raise ValueError(
                    f"--revision {self.revision}: {self.name} is a local folder, which has none."
                )
            return self.name
        weights = f"*.{self.variant}.*" if self.variant else "*"
        patterns = [f"{part}/{files}" for files in ("*.json", "*.txt", weights)]
        try:
            return huggingface_hub.snapshot_download(
                living_id(self.name), revision=self.revision, allow_patterns=patterns
            )
        except Exception as error:  # no network, no such repository or revision
            raise FileNotFoundError(
                f"{self.name} at revision {self.revision or 'main'} isn't there: {error}"
            ) from error


def load_tokenizer(name: str) -> CLIPTokenizer:
    """From a folder of its own, or a hub id (of which a model's weights aren't downloaded).

    Raises:
        ValueError, OSError: it isn't there.
    """
    if Path(name).expanduser().is_dir():
        return load_component(CLIPTokenizer, name)
    try:
        return CLIPTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # no network, no such repository, no tokenizer in it
        raise FileNotFoundError(f"--tokenizer_name {name} isn't there: {error}") from error


def load_models(
    source: ModelSource, tokenizer_name: str | None, dtype: torch.dtype, device: torch.device
) -> FrozenModels:
    """
    Raises:
        ValueError, OSError: a part is missing, or the model is of another kind.
    """
    tokenizer = (
        load_tokenizer(tokenizer_name)
        if tokenizer_name
        else source.load(CLIPTokenizer, "tokenizer")
    )
    # in float32: encodes once and decodes rarely, and some overflow in float16
    vae = source.load(AutoencoderKL, "vae", torch.float32)
    unet = source.load(UNet2DConditionModel, "unet", dtype)
    channels = unet.config.in_channels
    if unet.config.addition_embed_type or channels != vae.config.latent_channels:
        raise ValueError(
            f"{source.name} is no plain text-to-image model with one text encoder (its UNet has "
            f"{channels} input channels and {unet.config.addition_embed_type or 'no'} added "
            "conditions). Stable Diffusion 1.x or 2.x will do; SDXL and inpainting models won't."
        )
    return FrozenModels(
        tokenizer,
        source.load(CLIPTextModel, "text_encoder", dtype).to(device),
        unet.to(device),
        vae.to(device),
        source.load(DDPMScheduler, "scheduler"),
    )


def choose_precision(asked: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The frozen models' dtype, and a line about it.

    asked: no, fp16, bf16; None takes what accelerate is set to, or else fp16 on a GPU.
    """
    gpu = device.type == "cuda"
    if asked is None:
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if asked not in ("fp16", "bf16"):
            asked = "fp16" if gpu else "no"
    dtype = torch.bfloat16 if asked == "bf16" else weights_dtype(asked == "fp16" and gpu, device)
    line = f"{str(dtype).removeprefix('torch.')} on {device}"
    if dtype == torch.float32 and gpu:
        line += " (--mixed_precision fp16 is several times faster)"
    if dtype == torch.float32 and asked == "fp16":
        line += " (fp16 is for GPUs, and slow on a CPU)"
    return dtype, line


def use_xformers(unet: UNet2DConditionModel) -> str:
    """Gives the UNet xformers' attention where that works; says in words which one it has."""
    try:
        import xformers  # noqa: F401  # pyright: ignore[reportMissingImports] (an extra)

        missing = None if unet.device.type == "cuda" else "needs a GPU"
    except ImportError:
        missing = "isn't installed"
    if missing:
        return f"xformers {missing}; PyTorch's own attention is used, which is as fast"
    unet.enable_xformers_memory_efficient_attention()
    return "xformers"
