"""Random tiny models in diffusers' folder format, to run every loader, guidance and stage for real.

    python -m animate124.toyworld.random_priors OUT [--seed 0]

writes OUT/{sd,zero123,text-to-video,image-to-video,controlnet-tile}. The architectures are those of
the real models (Stable Diffusion, Zero123, ModelScope's text-to-video and a UNet of it that also
sees a picture, the tile ControlNet), only narrower; the VAEs shrink images by 8 as the real ones
do, so 64 px become 8 x 8 latents.

Every file is written by hand and every tensor is drawn in the order of the sorted names, so that a
seed gives the same bytes under any version of the libraries, and that old and new ones read them:
transformers 4.28 needs vocab.json, merges.txt and the `text_model.` prefix of the weights (without
it, it keeps random weights, silently); diffusers 0.19 fixes 32 groups in the 3D UNet's temporal
layers.
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet3DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

WIDTH = 32  # of the text and image embeddings: the UNets' cross-attention dimension
START, END = "<|startoftext|>", "<|endoftext|>"

# Words that the tokenizer knows as one token; any other text is spelt byte by byte.
WORDS = (
    "a an the is of in on at with and to front back side overhead view best quality high photo "
    "render image picture good bad low blurry panda fox rabbit bear frog duck robot cat tiger dog "
    "dancing jumping waving spinning standing still playing guitar running walking dance jump wave "
    "spin"
)

UNET_2D = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
}
UNET_3D = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "cross_attention_dim": WIDTH,
}
CONTROLNET = {
    "in_channels": 4,
    "down_block_types": UNET_2D["down_block_types"],
    "block_out_channels": UNET_2D["block_out_channels"],
    "layers_per_block": UNET_2D["layers_per_block"],
    "attention_head_dim": UNET_2D["attention_head_dim"],
    "norm_num_groups": UNET_2D["norm_num_groups"],
    "cross_attention_dim": WIDTH,
    "conditioning_embedding_out_channels": [8, 8, 16, 16],
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
TEXT_ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "projection_dim": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
IMAGE_ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "projection_dim": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
FEATURE_EXTRACTOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    **dict.fromkeys(
        ("do_resize", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale"), True
    ),
}


ZERO123_INDEX = {
    "_class_name": "Zero123Pipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "clip_camera_projection": ["zero123", "CLIPCameraProjection"],
    "scheduler": ["diffusers", SCHEDULER["_class_name"]],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


def bytes_as_characters() -> list[str]:
    """GPT-2's 256 printable stand-ins for the bytes, in CLIP's order (printable bytes first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def byte_pairs(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges, trained on `words` (ASCII) until each is one token.

    Byte-pair encoding (Sennrich et al. 2016): merge the most frequent neighbours, again and again.
    An encoder replays the merges in this order, so that each word ends as one token there too.
    """
    letters = bytes_as_characters()
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    corpus = [" ".join([*word[:-1], word[-1] + "</w>"]) for word in dict.fromkeys(words)]
    while pairs := Counter(pair for word in corpus for pair in pairwise(word.split())):
        pair = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(pair)
        vocabulary.append("".join(pair))
        whole_pair = re.compile(rf"(?<!\S){re.escape(' '.join(pair))}(?!\S)")
        corpus = [whole_pair.sub("".join(pair), word) for word in corpus]
    return [*vocabulary, START, END], merges


def draw_weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict with every tensor drawn anew, also those that start at zero (ControlNet's).

    Embeddings get variance 1, matrices and kernels 1 / fan-in, norms 1 +- 0.1, biases 0 +- 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, old in sorted(model.state_dict().items()):
        if not old.is_floating_point():  # position ids: constants, made by the model itself
            continue
        new = torch.randn(old.shape, generator=generator)
        if old.ndim >= 2:
            table = name.endswith(("token_embedding.weight", "position_embedding.weight"))
            new = new / (1.0 if table else math.sqrt(old[0].numel()))
        else:
            new = 0.1 * new + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        state[name] = new.contiguous()
    return state


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_diffusers(folder: Path, kind: Callable[..., nn.Module], config: dict, seed: int) -> None:
    """config.json and weights of a diffusers model."""
    write_json(folder / "config.json", {"_class_name": kind.__name__, **config})
    weights = draw_weights(kind(**config), seed)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def write_text_encoder(folder: Path, vocabulary: list[str], seed: int) -> None:
    ids = {"bos_token_id": vocabulary.index(START), "eos_token_id": vocabulary.index(END)}
    config = {**TEXT_ENCODER, **ids, "pad_token_id": ids["eos_token_id"]}
    config["vocab_size"] = len(vocabulary)
    head = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    write_json(folder / "config.json", {**head, **config, "torch_dtype": "float32"})
    weights = draw_weights(CLIPTextModel(CLIPTextConfig(**config)), seed)
    weights = {"text_model." + k.removeprefix("text_model."): w for k, w in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_image_encoder(folder: Path, seed: int) -> None:
    head = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    write_json(folder / "config.json", {**head, **IMAGE_ENCODER, "torch_dtype": "float32"})
    weights = draw_weights(CLIPVision(CLIPVisionConfig(**IMAGE_ENCODER)), seed)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_tokenizer(
    folder: Path, vocabulary: list[str], merges: list[tuple[str, str]], max_length: int = 77
) -> None:
    """CLIP's tokenizer files; `max_length` is of a prompt in tokens, start and end included."""
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    kind = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    numbers = {"model_max_length": max_length, "add_prefix_space": False}
    write_json(folder / "tokenizer_config.json", {**kind, **numbers, **special})


def write_camera_projection(folder: Path, seed: int) -> None:
    """Zero123's layer over (image embedding, 4 camera numbers); its class lives in no library."""
    config = {"embedding_dim": WIDTH, "additional_embeddings": 4}
    write_json(folder / "config.json", {"_class_name": "CLIPCameraProjection", **config})
    layer = nn.ModuleDict({"proj": nn.Linear(WIDTH + 4, WIDTH)})
    weights = draw_weights(layer, seed)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def write_text_to_image(folder: Path, pipeline: str, unet: type, config: dict, seed: int) -> None:
    """A whole text-to-image (or -video) folder: tokenizer, text encoder, UNet, VAE, scheduler."""
    vocabulary, merges = byte_pairs(WORDS.split())
    write_tokenizer(folder / "tokenizer", vocabulary, merges)
    write_text_encoder(folder / "text_encoder", vocabulary, seed)
    write_diffusers(folder / "unet", unet, config, seed + 1)
    write_diffusers(folder / "vae", AutoencoderKL, VAE, seed + 2)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", text_index(pipeline, unet.__name__))


def text_index(pipeline: str, unet: str) -> dict:
    """model_index.json of a text-to-image or text-to-video folder."""
    index = {
        "_class_name": pipeline,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", unet],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
    }
    if pipeline == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    return index


def write_zero123(folder: Path, seed: int) -> None:
    write_diffusers(folder / "unet", UNet2DConditionModel, {**UNET_2D, "in_channels": 8}, seed)
    write_diffusers(folder / "vae", AutoencoderKL, VAE, seed + 1)
    write_image_encoder(folder / "image_encoder", seed + 2)
    write_camera_projection(folder / "clip_camera_projection", seed + 3)
    write_json(folder / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", ZERO123_INDEX)


def make_random_priors(out: str | Path, seed: int = 0) -> Path:
    """Writes the five folders below `out` (a few MB, a second) and returns `out`."""
    out = Path(out)
    seed *= 100  # each tensor file has a seed of its own
    with torch.random.fork_rng(devices=[]):  # building the models draws from the global generator
        pipelines = ("StableDiffusionPipeline", "TextToVideoSDPipeline")
        write_text_to_image(out / "sd", pipelines[0], UNet2DConditionModel, UNET_2D, seed)
        write_text_to_image(
            out / "text-to-video", pipelines[1], UNet3DConditionModel, UNET_3D, seed + 10
        )
        write_zero123(out / "zero123", seed + 20)
        write_diffusers(out / "controlnet-tile", ControlNetModel, CONTROLNET, seed + 30)
        seeing = {**UNET_3D, "in_channels": 8}
        write_diffusers(out / "image-to-video", UNet3DConditionModel, seeing, seed + 40)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Random tiny models in diffusers' folder format.")
    parser.add_argument("out", help="folder that gets the five model folders")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights")
    args = parser.parse_args()
    print(f"wrote {make_random_priors(args.out, args.seed)}")


if __name__ == "__main__":
    main()
