"""Video priors at their true size with random weights, made in memory: nothing is downloaded. What
each model's folder states (scheduler, pipeline) is written; its prompts aren't read, since the text
encoder is gone before training: random embeddings of the right shape take their place.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import full_size_models
import torch
import transformers
from animate124.pretrained import models
from animate124.prompt_processors import prompts
from animate124.toyworld.random_priors import FEATURE_EXTRACTOR, SCHEDULER, write_json

FLOW = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 5.0}
COGVIDEOX = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
}
TINY_TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
TINY_WAN = {**TINY_TRANSFORMER, "ffn_dim": 32, "freq_dim": 16, "text_dim": 16}
WAN_VAE = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
LTX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "base_shift": 0.95,
    "max_shift": 2.05,
}
SVD = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
VISION_H = {  # SVD's image encoder
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
}
PIXELS = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
TINY_WIDTHS = {"block_out_channels": (32, 32, 32, 32)}
TINY_MOTION = {**TINY_WIDTHS, "motion_num_attention_heads": 2}
# class of diffusers or transformers, config, what is tiny of it
Part = tuple[str, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A video model: what its folder has, and the shape of a prompt as its text encoder has it."""

    parts: dict[str, Part]  # subfolder -> network
    scheduler: dict[str, Any]
    text: tuple[int, int] = (0, 0)  # tokens, width; none
    masked: bool = False  # whether its text reader says which tokens count
    index: dict[str, Any] = field(default_factory=dict)
    sees_picture: bool = False
    # keys of the guidance's config that name a model of their own, and which part that is
    apart: dict[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {  # by the end of their configs' names
    "wan": Family(
        {
            "transformer": (
                "WanTransformer3DModel",
                {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
                TINY_WAN,
            ),
            "vae": ("AutoencoderKLWan", WAN_VAE, {"base_dim": 4}),
        },
        {**FLOW, "flow_shift": 3.0},
        (512, 4096),
        index={"_class_name": "WanPipeline"},
    ),
    "wan-ti2v": Family(
        {
            "transformer": (
                "WanTransformer3DModel",
                {
                    "num_attention_heads": 24,
                    "ffn_dim": 14336,
                    "num_layers": 30,
                    "in_channels": 48,
                    "out_channels": 48,
                },
                TINY_WAN,
            ),
            "vae": (
                "AutoencoderKLWan",
                {
                    **WAN_VAE,
                    "base_dim": 160,
                    "decoder_base_dim": 256,
                    "z_dim": 48,
                    "is_residual": True,
                    "patch_size": 2,
                    "in_channels": 12,
                    "out_channels": 12,
                    "scale_factor_spatial": 16,
                    "latents_mean": [0.0] * 48,
                    "latents_std": [1.0] * 48,
                },
                {"base_dim": 4, "decoder_base_dim": 4},
            ),
        },
        FLOW,
        (512, 4096),
        index={"_class_name": "WanPipeline", "expand_timesteps": True},
        sees_picture=True,
    ),
    "wan-vace": Family(
        {
            "transformer": (
                "WanVACETransformer3DModel",
                {
                    "num_attention_heads": 12,
                    "ffn_dim": 8960,
                    "num_layers": 30,
                    "vace_layers": [*range(0, 30, 2)],
                },
                {**TINY_WAN, "vace_layers": [0]},
            ),
            "vae": ("AutoencoderKLWan", WAN_VAE, {"base_dim": 4}),
        },
        {**FLOW, "flow_shift": 3.0},
        (512, 4096),
        index={"_class_name": "WanVACEPipeline"},
        sees_picture=True,
    ),
    "skyreels": Family(
        {
            "transformer": (
                "SkyReelsV2Transformer3DModel",
                {
                    "num_attention_heads": 12,
                    "ffn_dim": 8960,
                    "num_layers": 30,
                    "in_channels": 36,
                    "out_channels": 16,
                    "image_dim": 1280,
                    "added_kv_proj_dim": 1536,
                },
                {**TINY_WAN, "image_dim": 16, "added_kv_proj_dim": 32},
            ),
            "vae": ("AutoencoderKLWan", WAN_VAE, {"base_dim": 4}),
            "image_encoder": (
                "CLIPVisionModelWithProjection",
                VISION_H,
                {"hidden_size": 16, "num_hidden_layers": 2, "projection_dim": 16},
            ),
        },
        FLOW,
        (512, 4096),
        index={"_class_name": "SkyReelsV2ImageToVideoPipeline"},
        sees_picture=True,
    ),
    "ltx": Family(
        {
            "transformer": (
                "LTXVideoTransformer3DModel",
                {},
                {
                    "num_attention_heads": 2,
                    "attention_head_dim": 16,
                    "cross_attention_dim": 32,
                    "num_layers": 1,
                    "caption_channels": 16,
                },
            ),
            "vae": (
                "AutoencoderKLLTXVideo",
                {},
                {
                    "block_out_channels": (8, 8, 8, 8),
                    "decoder_block_out_channels": (8, 8, 8, 8),
                    "layers_per_block": (1, 1, 1, 1, 1),
                    "decoder_layers_per_block": (1, 1, 1, 1, 1),
                },
            ),
        },
        LTX,
        (128, 4096),
        masked=True,
        index={"_class_name": "LTXPipeline"},
        sees_picture=True,
    ),
    "cogvideox": Family(
        {
            "transformer": (
                "CogVideoXTransformer3DModel",
                {},
                {**TINY_TRANSFORMER, "time_embed_dim": 8, "text_embed_dim": 16},
            ),
            "vae": (
                "AutoencoderKLCogVideoX",
                {
                    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
                    "block_out_channels": (128, 256, 256, 512),
                },
                {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2},
            ),
        },
        COGVIDEOX,
        (226, 4096),
    ),
    "cogvideox-image": Family(
        {
            "transformer": (
                "CogVideoXTransformer3DModel",
                {
                    "num_attention_heads": 48,
                    "num_layers": 42,
                    "in_channels": 32,
                    "use_rotary_positional_embeddings": True,
                    "use_learned_positional_embeddings": True,
                },
                {**TINY_TRANSFORMER, "time_embed_dim": 8, "text_embed_dim": 16},
            ),
            "vae": (
                "AutoencoderKLCogVideoX",
                {
                    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
                    "block_out_channels": (128, 256, 256, 512),
                },
                {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2},
            ),
        },
        {**COGVIDEOX, "snr_shift_scale": 1.0},
        (226, 4096),
        sees_picture=True,
    ),
    "svd": Family(
        {
            "unet": (
                "UNetSpatioTemporalConditionModel",
                {"num_frames": 14},
                {
                    **TINY_WIDTHS,
                    "num_frames": 5,
                    "num_attention_heads": (2, 2, 2, 2),
                    "cross_attention_dim": 16,
                },
            ),
            "vae": (
                "AutoencoderKLTemporalDecoder",
                {
                    "down_block_types": ("DownEncoderBlock2D",) * 4,
                    "block_out_channels": (128, 256, 512, 512),
                    "layers_per_block": 2,
                },
                TINY_WIDTHS,
            ),
            "image_encoder": (
                "CLIPVisionModelWithProjection",
                VISION_H,
                {"hidden_size": 16, "num_hidden_layers": 1, "projection_dim": 16},
            ),
        },
        SVD,
        sees_picture=True,
    ),
    "animatediff": Family(
        {
            "unet": (
                "UNet2DConditionModel",
                full_size_models.UNET_2D,
                {**TINY_WIDTHS, "cross_attention_dim": 16},
            ),
            "vae": ("AutoencoderKL", full_size_models.VAE, TINY_WIDTHS),
            "motion_adapter": ("MotionAdapter", {"use_motion_mid_block": False}, TINY_MOTION),
            "sparsectrl": (
                "SparseControlNetModel",
                {
                    "motion_num_attention_heads": 8,
                    "conditioning_channels": 4,
                    "use_simplified_condition_embedding": True,
                },
                {**TINY_MOTION, "cross_attention_dim": 16},
            ),
        },
        SCHEDULER,
        (77, 768),
        sees_picture=True,
        apart={
            "motion_adapter_name_or_path": "motion_adapter",
            "sparsectrl_name_or_path": "sparsectrl",
        },
    ),
}


def part_of(name: str, subfolder: str, tiny: bool) -> tuple[type, dict[str, Any]]:
    """Class and config of a family's network."""
    kind, config, small = FAMILIES[name].parts[subfolder]
    found = getattr(diffusers, kind, None) or getattr(transformers, kind)
    return found, {**config, **small} if tiny else config


def build(kind: Any, config: dict[str, Any], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """As a folder's weights are loaded: in this precision, but for the modules that diffusers keeps
    in float32."""
    kept = getattr(kind, "_keep_in_fp32_modules", None) or []
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = full_size_models.build(kind, config)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in made.named_parameters():
        whole = any(part in name.split(".") for part in kept)
        parameter.data = parameter.data.to(torch.float32 if whole else dtype)
    return made.requires_grad_(False).eval()


def install_video(name: str, folder: Path, device: str, tiny: bool) -> list[str]:
    """Puts a model that only has small files into the folder; its networks are made where they
    would be read, and prompts are random. The overrides that name it."""
    family, place = FAMILIES[name], folder / name
    write_json(place / "scheduler" / "scheduler_config.json", {**SCHEDULER, **family.scheduler})
    write_json(place / "model_index.json", family.index)
    for part in ("feature_extractor", "image_processor"):  # what CLIP's pictures are like
        write_json(place / part / "preprocessor_config.json", {**FEATURE_EXTRACTOR, **PIXELS})
    for subfolder in family.parts:
        write_json(place / subfolder / "config.json", part_of(name, subfolder, tiny)[1])
    read = models.load_component

    def load_component(kind: type, model: str, subfolder: str = "", dtype: Any = None) -> Any:
        part = Path(model) / subfolder
        if dtype is None or part.parent != place:
            return read(kind, model, subfolder, dtype)
        return build(*part_of(name, part.name, tiny), dtype, device)

    models.load_component = load_component
    length, width = family.text

    def read_texts(model: str, texts: list[str], **options: Any) -> tuple[Any, Any]:
        tokens = torch.randn(len(texts), length, 16 if tiny else width, device=device)
        mask = torch.ones(len(texts), length, dtype=torch.bool, device=device)
        return tokens, mask if family.masked else None

    prompts.read_texts = read_texts
    names = {"pretrained_model_name_or_path": place}
    names |= {key: place / part for key, part in family.apart.items()}
    return [f"system.guidance.{key}={path}" for key, path in names.items()]
