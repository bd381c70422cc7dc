"""The prompts that hold the new word, and their token ids."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTokenizer

from ..pretrained.learned_tokens import token_pattern

_OBJECT_VIEWS = ("a photo", "a rendering", "a close-up photo", "a cropped photo", "a bright photo")
_OBJECT_NAMES = ("a {}", "the {}", "my {}", "one {}", "a nice {}")
_STYLE_KINDS = ("painting", "picture", "rendering", "drawing")
_STYLE_LOOKS = ("a {}", "the {}", "a close-up {}", "a bright {}", "a good {}")
TEMPLATES = {
    "object": [f"{view} of {name}" for view in _OBJECT_VIEWS for name in _OBJECT_NAMES],
    "style": [
        f"{look.format(kind)} in the style of {{}}"
        for look in _STYLE_LOOKS
        for kind in _STYLE_KINDS
    ],
}


class PromptReader:
    """Prompts -> token ids [N L], the placeholder as the ids behind the tokenizer's vocabulary."""

    def __init__(
        self, tokenizer: CLIPTokenizer, placeholder: str, new_ids: Sequence[int], length: int
    ):
        self.tokenizer, self.length = tokenizer, length
        self.placeholder, self.new_ids = placeholder, list(new_ids)
        self.pattern = token_pattern([placeholder])
        special: tuple[Any, ...] = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        self.start, self.end, self.padding = special

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "N L"]:
        return torch.tensor([self.row(prompt) for prompt in prompts])

    def row(self, prompt: str) -> list[int]:
        """Start, as much of the prompt as fits, end, padding."""
        inside: list[int] = []
        for piece in self.pattern.split(prompt):
            if piece == self.placeholder:
                inside += self.new_ids
            else:
                read = self.tokenizer(piece, add_special_tokens=False, verbose=False)
                inside += read.input_ids
        inside = inside[: self.length - 2]
        padding = [self.padding] * (self.length - 2 - len(inside))
        return [self.start, *inside, self.end, *padding]
