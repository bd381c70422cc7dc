"""The small networks that evaluation ships: weights in float16, and a config.json of how they were
trained and how well they do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = "model.safetensors"
Network = TypeVar("Network", bound=nn.Module)


def write(folder: Path, model: nn.Module, config: dict) -> None:
    """Writes both files, and prints the config."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() for name, value in model.state_dict().items()}
    save_file(half, folder / WEIGHTS)
    text = json.dumps(config, indent=2)
    (folder / "config.json").write_text(text + "\n")
    print(text)


def read(folder: Path, model: Network) -> Network:
    """The model with a folder's weights, frozen."""
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval().requires_grad_(False)
