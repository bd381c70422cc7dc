"""Text readers: a prompt as the embeddings that a prior was trained with. The class that a model's
folder states for its text encoder says which reader it needs: CLIP, T5 or UMT5. A reader is loaded
to read a few prompts and dropped again; what is longer than it reads is cut off.
"""

from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..files.json_files import read_json
from . import models
from .learned_tokens import LearnedTokens, token_pattern


class Text(NamedTuple):
    """A prompt, read."""

    embedding: Float[Tensor, "L D"]  # the last hidden state
    mask: Bool[Tensor, " L"] | None  # tokens that count; None: padding counts, too
    cut: str  # the part of the prompt that didn't fit, "" if all did


class TextReader:
    """Tokenizer and text encoder of a model; learned tokens get rows behind the vocabulary's.

    length: tokens that a prompt is padded or cut to; None: what the model states.
    """

    classes: ClassVar[tuple[str, str]]  # of transformers: tokenizer, encoder
    special: ClassVar[tuple[str, ...]]  # tokens that a row needs

    def __init__(
        self,
        model: str,
        learned: LearnedTokens,
        device: torch.device | str,
        length: int | None = None,
    ):
        self.model, self.device = model, torch.device(device)
        tokenizer, encoder = (class_of_transformers(name) for name in self.classes)
        self.tokenizer = models.load_component(tokenizer, model, "tokenizer")
        self.encoder = models.load_component(encoder, model, "text_encoder", self.dtype)
        self.length = self.row_length(length)
        if None in (getattr(self.tokenizer, f"{name}_token_id") for name in self.special):
            raise ValueError(
                f"The tokenizer of {model} has no token for a prompt's start, end or padding: its "
                "special_tokens_map.json or tokenizer_config.json is damaged. Download it again."
            )
        self.ids: dict[str, list[int]] = {}  # of learned tokens
        for token, vectors in learned.items():
            self.learn(token, vectors)
        self.encoder.to(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's weights."""
        return torch.float32

    def row_length(self, length: int | None) -> int:
        """Tokens of a row, where `length` is asked for."""
        raise NotImplementedError

    def row(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Ids as the encoder takes them, without padding, and those that didn't fit."""
        raise NotImplementedError

    def read_row(
        self, ids: Any, mask: Any
    ) -> tuple[Float[Tensor, "1 L D"], Bool[Tensor, "1 L"] | None]:
        """What the encoder says of a row [1 L] with this mask, and which of it counts."""
        raise NotImplementedError

    def learn(self, token: str, vectors: Float[Tensor, "n D"]) -> None:
        """Gives the token rows of its own in the encoder's table."""
        self.check_width(token, vectors)
        table = self.encoder.get_input_embeddings()
        first = len(table.weight)
        self.ids[token] = list(range(first, first + len(vectors)))
        weight = torch.cat([table.weight, vectors.to(table.weight)])
        table.weight = nn.Parameter(weight, requires_grad=False)
        self.encoder.set_input_embeddings(table)  # T5 has it in two places

    def check_width(self, token: str, vectors: Float[Tensor, "n D"]) -> None:
        width = self.encoder.config.hidden_size
        if vectors.shape[1] != width:
            raise ValueError(
                f"The learned token {token!r} has {vectors.shape[1]} dimensions, but the text "
                f"encoder of {self.model} takes {width}. A token fits only the model that it was "
                "learnt with (768: Stable Diffusion 1.x, 1024: 2.x); run textual inversion on this "
                "one."
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
    def read(self, prompt: str) -> Text:
        ids = self.prompt_ids(prompt)
        if max(ids, default=0) >= len(self.encoder.get_input_embeddings().weight):
            raise ValueError(
                f"The tokenizer of {self.model} has words that its text encoder doesn't know, one "
                f"of them in {prompt!r}: the two don't belong together. Download the model again."
            )
        row, cut = self.row(ids)
        padding = self.length - len(row)
        rows = torch.tensor([row + [self.tokenizer.pad_token_id] * padding], device=self.device)
        mask = torch.tensor([[True] * len(row) + [False] * padding], device=self.device)
        embedding, mask = self.read_row(rows, mask)
        counts = None if mask is None else mask[0].cpu()
        return Text(embedding[0].float().cpu(), counts, self.decode(cut))


class ClipReader(TextReader):
    """CLIP reads 77 tokens: start, 75 of the prompt, end, padding. The priors that have it were
    trained with the padding in sight. In float32."""

    classes = ("CLIPTokenizerFast", "CLIPTextModel")
    special = ("bos", "eos", "pad")

    def row_length(self, length: int | None) -> int:
        positions = self.encoder.config.max_position_embeddings
        return min(length or self.tokenizer.model_max_length, positions)

    def row(self, ids: list[int]) -> tuple[list[int], list[int]]:
        room = self.length - 2
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [start, *ids[:room], end], ids[room:]

    def read_row(self, ids, mask):
        return self.encoder(ids)[0], None


class T5Reader(TextReader):
    """T5's encoder: the prompt, end, padding. The encoder itself sees the padding (LTX-Video,
    CogVideoX); the mask tells it from the prompt. XXL has 4.8 billion weights, hence bfloat16 on a
    GPU."""

    classes = ("T5TokenizerFast", "T5EncoderModel")
    special = ("eos", "pad")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def row_length(self, length: int | None) -> int:
        """Positions are relative: there is no longest row but what it was trained with."""
        return length or min(self.tokenizer.model_max_length, 512)

    def row(self, ids: list[int]) -> tuple[list[int], list[int]]:
        room = self.length - 1
        return [*ids[:room], self.tokenizer.eos_token_id], ids[room:]

    def read_row(self, ids, mask):
        return self.encoder(ids)[0], mask


class UMT5Reader(T5Reader):
    """UMT5's encoder, as Wan has it: it doesn't see the padding, whose embeddings are zeros."""

    classes = ("T5TokenizerFast", "UMT5EncoderModel")

    def read_row(self, ids, mask):
        return self.encoder(ids, attention_mask=mask.long())[0] * mask[..., None], mask


READERS: dict[str, type[TextReader]] = {  # by the class of the text encoder
    "CLIPTextModel": ClipReader,
    "CLIPTextModelWithProjection": ClipReader,
    "CLIPModel": ClipReader,
    "T5EncoderModel": T5Reader,
    "UMT5EncoderModel": UMT5Reader,
}


def reader_of(model: str) -> type[TextReader]:
    """The reader of a model, by its text_encoder/config.json; CLIP's where that states no class.

    Raises:
        ValueError: there is no reader for what it states.
    """
    path = models.model_folder(model, "text_encoder") / "text_encoder" / "config.json"
    stated = read_json(path).get("architectures") if path.is_file() else None
    name = stated[0] if isinstance(stated, list) and stated else "CLIPTextModel"
    if name not in READERS:
        raise ValueError(
            f"{path} is of a {name}, and there is no reader of prompts for that; for "
            f"{', '.join(READERS)} there is one."
        )
    return READERS[name]


def class_of_transformers(name: str) -> type:
    """A ValueError where the installed transformers is older than the class."""
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no {name}, which this model's prompts "
            "are read with: a newer transformers is needed."
        )
    return found
