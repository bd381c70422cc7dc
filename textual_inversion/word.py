"""The new word, within a text encoder and its prompts."""

import argparse
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .frozen_models import FrozenModels
from .learned_rows import SplicedEmbedding, check_placeholder, initial_rows
from .prompts import TEMPLATES, PromptReader


@dataclass(frozen=True)
class Word:
    rows: nn.Parameter  # [n D] float32, of all numbers the only ones that are trained
    prompts: Int[Tensor, "P L"]  # that it is learnt in
    shown: Int[Tensor, "2 L"]  # the validation prompt, or the first of those; and the empty one
    start: str  # what its rows start from


def add_word(models: FrozenModels, args: argparse.Namespace, device: torch.device) -> Word:
    """Splices the word's rows into the text encoder and reads the prompts.

    Raises:
        ValueError: the placeholder is a word already, the initializer has no token, or the
            validation prompt lacks the placeholder.
    """
    check_placeholder(models.tokenizer, args.placeholder_token)
    table = models.text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)  # as from_pretrained makes it
    rows, start = initial_rows(
        models.tokenizer, table.weight, args.initializer_token, args.num_vectors
    )
    embedding = SplicedEmbedding(table, rows)
    first = table.num_embeddings
    new_ids = range(first, first + args.num_vectors)
    reader = PromptReader(models.tokenizer, args.placeholder_token, new_ids, models.prompt_length)
    templates = [t.format(args.placeholder_token) for t in TEMPLATES[args.learnable_property]]
    shown = args.validation_prompt or templates[0]
    shown_ids = reader.ids([shown, ""])
    if first not in shown_ids:
        raise ValueError(
            f"--validation_prompt {shown!r} has no {args.placeholder_token}, so it would show "
            "nothing of what is learnt. Write it where the subject stands."
        )
    models.text_encoder.set_input_embeddings(embedding)
    return Word(embedding.rows, reader.ids(templates).to(device), shown_ids.to(device), start)
