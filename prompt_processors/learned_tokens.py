"""Files of textual inversion: {token: tensor [D] or [n D]} as .bin or .safetensors, as this
project's textual_inversion.py and diffusers write them, also with several tokens in one file.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_learned_tokens(path: str | Path) -> dict[str, Tensor]:
    """Vectors [n D], float32, of each token in the file, by the token's name there."""
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        found = [str(p) for p in sorted(path.glob("learned_embeds*"))] if path.is_dir() else []
        raise FileNotFoundError(
            f"learned_embeds_path {str(path)!r} {what} (working directory: {Path.cwd()}). Give the "
            f"file that textual inversion wrote{': ' + ', '.join(found) if found else ''}."
        )
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} can't be read as learned embeddings: {error}. A .safetensors file, or a "
            "pickle of {token: tensor} and nothing else, will do."
        ) from error
    tokens = content.items() if isinstance(content, dict) else ()
    if not tokens or not all(isinstance(v, Tensor) and v.ndim in (1, 2) for _, v in tokens):
        held = list(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds {held}; {{token: tensor [D] or [n D]}} is needed, "
            "as textual_inversion.py writes it."
        )
    return {str(token): torch.atleast_2d(vectors).float() for token, vectors in tokens}
