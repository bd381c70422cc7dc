"""Files of textual inversion: {token: tensor [D] or [n D]} as .bin or .safetensors, as this
project's textual_inversion.py and diffusers write them, also with several tokens in one file.
Two more kinds are read: Automatic1111's (.pt) and SDXL's, of which the half for CLIP's own encoder
counts (`clip_l`, Stable Diffusion 1.x); the other half is for an encoder that no prior here has.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.torch_files import not_finite, read_safetensors, read_torch_file

LearnedTokens = Mapping[str, Tensor]  # how a prompt writes the token -> its vectors, each [n D]


def token_pattern(tokens: Sequence[str]) -> re.Pattern:
    """Finds learned tokens in a prompt, the longest first; names of letters only as whole words."""
    alternatives = []
    for token in sorted(tokens, key=len, reverse=True):
        left = r"\b" if re.match(r"\w", token) else ""
        right = r"\b" if re.search(r"\w$", token) else ""
        alternatives.append(left + re.escape(token) + right)
    return re.compile("(" + "|".join(alternatives) + ")")


def read_learned_tokens(path: str | Path) -> dict[str, Tensor]:
    """Vectors [n D], float32, of each token in the file, by the token's name there.

    Raises:
        FileNotFoundError: no such file; OSError: it can't be opened.
        ValueError: it is damaged, another kind of file, or holds what is no number.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        found = [str(p) for p in sorted(path.glob("learned_embeds*"))] if path.is_dir() else []
        raise FileNotFoundError(
            f"learned_embeds_path {str(path)!r} {what} (working directory: {Path.cwd()}). Give the "
            f"file that textual inversion wrote{': ' + ', '.join(found) if found else ''}."
        )
    safe = path.suffix.lower() == ".safetensors"
    content = read_safetensors(path) if safe else read_torch_file(path)
    tokens = tokens_of(content)
    if not tokens or not all(is_token(vectors) for vectors in tokens.values()):
        held = list(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds {held}; {{token: tensor [D] or [n D]}} is needed, "
            "as textual_inversion.py writes it."
        )
    if bad := not_finite(tokens):
        raise ValueError(
            f"{path}: the vectors of {', '.join(bad)} hold nan or infinity, which mean nothing. "
            "Run textual inversion again, with a smaller --learning_rate."
        )
    return {token: torch.atleast_2d(vectors).float() for token, vectors in tokens.items()}


def tokens_of(content: Any) -> dict[str, Any]:
    """What a file holds as {token: vectors}; {} where it is nothing of the kind."""
    if not isinstance(content, dict):
        return {}
    params = content.get("string_to_param")
    if isinstance(params, dict):  # Automatic1111: {"string_to_param": {"*": [n D]}, "name": ...}
        name = content.get("name")
        rename = len(params) == 1 and isinstance(name, str) and name.strip()
        return {str(name if rename else token): vectors for token, vectors in params.items()}
    if content.keys() == {"clip_l", "clip_g"}:  # SDXL
        return {"clip_l": content["clip_l"]}
    return {str(token): vectors for token, vectors in content.items()}


def is_token(vectors: Any) -> bool:
    return (
        isinstance(vectors, Tensor)
        and vectors.ndim in (1, 2)
        and vectors.numel() > 0
        and vectors.is_floating_point()
    )
