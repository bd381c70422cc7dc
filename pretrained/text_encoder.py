"""A text encoder with learned tokens. CLIP reads 77 tokens: start, 75 of the prompt, end, padding;
longer prompts are cut off. It is loaded to encode a few prompts, in float32, and dropped again.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizerFast

from . import models

LearnedTokens = Mapping[str, Tensor]  # how a prompt writes the token -> its vectors, each [n D]


def token_pattern(tokens: Sequence[str]) -> re.Pattern:
    """Finds learned tokens in a prompt, the longest first; names of letters only as whole words."""
    alternatives = []
    for token in sorted(tokens, key=len, reverse=True):
        left = r"\b" if re.match(r"\w", token) else ""
        right = r"\b" if re.search(r"\w$", token) else ""
        alternatives.append(left + re.escape(token) + right)
    return re.compile("(" + "|".join(alternatives) + ")")


class TextEncoder:
    """Tokenizer and text encoder of a model; learned tokens get rows behind the vocabulary's."""

    def __init__(self, model: str, learned: LearnedTokens, device: torch.device | str):
        self.model = model
        self.tokenizer = models.load_component(CLIPTokenizerFast, model, "tokenizer")
        self.encoder = models.load_component(CLIPTextModel, model, "text_encoder", torch.float32)
        positions = self.encoder.config.max_position_embeddings
        self.length = min(self.tokenizer.model_max_length, positions)
        special = (f"{kind}_token_id" for kind in ("bos", "eos", "pad"))
        if None in (getattr(self.tokenizer, name) for name in special):
            raise ValueError(
                f"The tokenizer of {model} has no token for a prompt's start, end or padding: its "
                "special_tokens_map.json or tokenizer_config.json is damaged. Download it again."
            )
        table = self.encoder.get_input_embeddings()
        self.ids: dict[str, list[int]] = {}  # of learned tokens
        for token, vectors in learned.items():
            self.check_width(model, token, vectors)
            first = len(table.weight)
            self.ids[token] = list(range(first, first + len(vectors)))
            weight = torch.cat([table.weight, vectors.to(table.weight)])
            table.weight = nn.Parameter(weight, requires_grad=False)
        self.encoder.to(device)
        self.device = device

    def check_width(self, model: str, token: str, vectors: Tensor) -> None:
        width = self.encoder.config.hidden_size
        if vectors.shape[1] != width:
            raise ValueError(
                f"The learned token {token!r} has {vectors.shape[1]} dimensions, but the text "
                f"encoder of {model} takes {width}. A token fits only the model that it was learnt "
                "with (768: Stable Diffusion 1.x, 1024: 2.x); run textual inversion on this one."
            )

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt of any length, without start and end."""
        pieces = token_pattern(list(self.ids)).split(prompt) if self.ids else [prompt]
        ids: list[int] = []
        for piece in pieces:
            options = {"add_special_tokens": False, "verbose": False}
            ids += self.ids.get(piece) or self.tokenizer(piece, **options).input_ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, learned ones by their name."""
        names = {i: token for token, rows in self.ids.items() for i in rows}
        runs = []
        for token, run in groupby(ids, names.get):
            runs.append(token or self.tokenizer.decode(list(run)))
        return " ".join(run.strip() for run in runs)

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[Float[Tensor, "L D"], str]:
        """The last hidden state of a prompt, and the part of it that didn't fit ("" if all did)."""
        ids = self.prompt_ids(prompt)
        if max(ids, default=0) >= len(self.encoder.get_input_embeddings().weight):
            raise ValueError(
                f"The tokenizer of {self.model} has words that its text encoder doesn't know, one "
                f"of them in {prompt!r}: the two don't belong together. Download the model again."
            )
        room = self.length - 2
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        padding = [self.tokenizer.pad_token_id] * (room - len(ids))
        row = [start, *ids[:room], end, *padding]
        embedding = self.encoder(torch.tensor([row], device=self.device))[0][0]
        return embedding.cpu(), self.decode(ids[room:])
