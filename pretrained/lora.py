"""LoRA (Hu et al. 2022): what somebody trained on top of a network, added to its weights once,

    W + scale alpha / r B A        A [r in], B [out r]

so that a step costs the same as without. Files name a layer as diffusers does, with dots, or with
underscores as kohya's scripts do; A and B go by several names.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import threestudio
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from ..files.torch_files import not_finite, read_safetensors
from .models import tensors_file

# what begins the names of a network's layers, and of a text encoder's
OF_NETWORK = re.compile(
    r"(?:base_model\.model\.)?(?:(?:unet|transformer|diffusion_model)\.|lora_unet_)?"
)
OF_TEXT = re.compile(r"text_encoder|text_model|lora_te\d?_|te\d?_text")
ENDS = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "alpha": "alpha",
}
END = re.compile(rf"(.+?)[._]({'|'.join(re.escape(end) for end in ENDS)})")


@dataclass
class Added:
    """What is added to one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None

    def delta(self, name: str, weight: Tensor, usual_alpha: float | None) -> Tensor:
        """alpha / r B A in the shape of the layer's weight, at float32; a convolution's too.

        usual_alpha: what the file states for layers without their own; None: r.
        """
        if self.down is None or self.up is None:
            raise ValueError(f"{name} has only one of the two matrices")
        down, up = self.down.float(), self.up.float()
        wanted = weight.flatten(1).shape
        fits = min(down.ndim, up.ndim) > 1 and len(down) > 0
        if fits:
            down, up = down.flatten(1), up.flatten(1)
            fits = up.shape[1] == len(down) and (len(up), down.shape[1]) == tuple(wanted)
        if not fits:
            raise ValueError(
                f"{name} has {list(weight.shape)} numbers, and what is added "
                f"{list(self.up.shape)} times {list(self.down.shape)}"
            )
        rank = len(down)
        alpha = rank if usual_alpha is None else usual_alpha
        alpha = alpha if self.alpha is None else self.alpha.item()
        return (alpha / rank * (up @ down)).view(weight.shape)


def layer_name(key: str) -> str:
    """A layer's name in a file without what stands before it; attention's older names anew."""
    name = OF_NETWORK.sub("", key, count=1)
    if ".processor." in name:
        name = re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
    return name


def is_part(end: str, tensor: Tensor) -> bool:
    """Whether it can be what its name says: an alpha, or one of two matrices."""
    return tensor.numel() == 1 if end == "alpha" else tensor.is_floating_point()


def read_lora(path: Path) -> tuple[dict[str, Added], float | None, int]:
    """What a file adds to each layer, by the file's names; its usual alpha, where it states one;
    how many of its tensors are a text encoder's.

    Raises:
        FileNotFoundError: no such file; ValueError: it is damaged, or another kind of adapter.
    """
    added: dict[str, Added] = {}
    others, of_text = [], 0
    for key, tensor in read_safetensors(path).items():
        match = END.fullmatch(key)
        if OF_TEXT.match(key.removeprefix("base_model.model.")):
            of_text += 1
        elif match is None or not is_part(match[2], tensor):
            others.append(key)
        else:
            setattr(added.setdefault(layer_name(match[1]), Added()), ENDS[match[2]], tensor)
    if others or not added:
        what = f"holds {others[:3]} and so on" if others else "has nothing for a network"
        raise ValueError(
            f"{path} {what}: it is no LoRA, or of a variant (DoRA, LoHa, LoKr) that isn't read "
            "here. A .safetensors file with lora_A and lora_B, or lora_down and lora_up, of each "
            "layer will do."
        )
    return added, stated_alpha(path), of_text


def stated_alpha(path: Path) -> float | None:
    """lora_alpha as diffusers and peft state it in a file's metadata, for all layers the same."""
    with safe_open(path, framework="pt") as file:
        held = (file.metadata() or {}).get("lora_adapter_metadata")
    try:
        return alpha_of(json.loads(held)) if held else None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be read: of its lora_adapter_metadata, {error}.") from None


def alpha_of(stated: Mapping[str, Any]) -> float | None:
    alpha = None
    for key, value in stated.items():
        name = key.rpartition(".")[2]
        if name in ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora") and value:
            raise ValueError(f"{name} isn't read here: one alpha for all is")
        if name == "lora_alpha" and not key.startswith("text_encoder"):
            alpha = float(value)
    return alpha


@torch.no_grad()
def add_lora(network: nn.Module, path: str, scale: float) -> None:
    """Adds a file to the network's weights, in place.

    Raises:
        ValueError: the file is damaged, another kind of adapter, or another network's;
            FileNotFoundError: there is none. Nothing was added then.
    """
    added, alpha, of_text = read_lora(tensors_file(path))
    layers: dict[str, Any] = {
        name: layer for name, layer in network.named_modules() if hasattr(layer, "weight")
    }
    known = {name.replace(".", "_"): name for name in layers} | {name: name for name in layers}
    found = {name: layers[key] for name in added if (key := known.get(name)) is not None}
    if missing := [name for name in added if name not in found]:
        raise ValueError(
            f"{path} is for another network: {len(missing)} of its {len(added)} layers aren't in "
            f"the {type(network).__name__}, {missing[:3]} and so on. Is it of another model, or "
            "does it have another program's names? diffusers' or kohya's will do."
        )
    try:
        sums = {
            name: plus(found[name].weight, scale * part.delta(name, found[name].weight, alpha))
            for name, part in added.items()
        }
    except ValueError as error:
        raise ValueError(f"{path} doesn't fit the {type(network).__name__}: {error}.") from None
    if bad := not_finite(sums):
        raise ValueError(
            f"With {path}, {scale:g} times, {len(bad)} layers hold nan or infinity, {bad[:3]} "
            "and so on: the file is damaged, or lora_scale too large."
        )
    for name, weight in sums.items():
        found[name].weight.copy_(weight)
    threestudio.info(f"{path} was added to {len(added)} layers, {scale:g} times.")
    if of_text:
        threestudio.warn(f"{path} has {of_text} tensors for a text encoder, which aren't used.")


def plus(weight: Float[Tensor, " *shape"], delta: Float[Tensor, " *shape"]) -> Tensor:
    """Their sum in the weight's precision, rounded once."""
    return (weight.float() + delta.to(weight.device)).to(weight.dtype)
