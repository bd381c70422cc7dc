"""The rows of numbers that are trained, within the text encoder and in files.

The text encoder's embedding table stays as it is. Ids behind its end are looked up in a small
float32 parameter, so nothing else can change.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ..files.torch_files import DIGEST, digest
from ..files.whole import whole_file


class SplicedEmbedding(nn.Module):
    """A frozen table of V rows with n trained rows behind it: ids V..V+n-1 are the new ones."""

    def __init__(self, table: nn.Embedding, rows: Float[Tensor, "n D"]):
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.detach().float().clone())

    def forward(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        first = self.table.num_embeddings
        known = self.table(ids.clamp(max=first - 1))
        learned = F.embedding((ids - first).clamp(min=0), self.rows).to(known.dtype)
        return torch.where((ids >= first)[..., None], learned, known)


def check_placeholder(tokenizer: CLIPTokenizer, placeholder: str) -> None:
    """
    Raises:
        ValueError: the placeholder can't be told from an existing word.
    """
    pieces = tokenizer(placeholder, add_special_tokens=False).input_ids
    if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
        raise ValueError(
            f"--placeholder_token {placeholder!r} is already a word of the tokenizer and would "
            f"lose its meaning. Take one that isn't, for instance _{placeholder}_."
        )


def initial_rows(
    tokenizer: CLIPTokenizer, table: Float[Tensor, "V D"], initializer: str, n: int
) -> tuple[Float[Tensor, "{n} D"], str]:
    """n equal rows to start from, and what they are in words. Of several tokens it is the mean.

    Raises:
        ValueError: the initializer has no token.
    """
    ids = tokenizer(initializer, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(
            f"--initializer_token {initializer!r} has no token. Give a word for what the picture "
            "shows, such as panda."
        )
    names = ", ".join(tokenizer.convert_ids_to_tokens(ids)).replace("</w>", "")
    what = f"the initializer {initializer!r}"
    if len(ids) > 1:
        what += f" is {len(ids)} tokens ({names}): starting from the mean of their embeddings"
    return table[ids].float().mean(0).expand(n, -1).clone(), what


def write_learned(
    folder: Path, stem: str, placeholder: str, rows: Float[Tensor, "n D"], safe: bool
) -> list[Path]:
    """`stem`.bin and, if `safe`, .safetensors: {placeholder: [D], or [n D] of several vectors}."""
    rows = rows.detach().float().cpu().clone()
    content = {placeholder: rows[0] if len(rows) == 1 else rows}
    written = []
    for suffix in (".bin", ".safetensors")[: 1 + safe]:
        path = folder / f"{stem}{suffix}"
        with whole_file(path) as part, part.open("wb") as file:
            if suffix == ".bin":
                torch.save(content, file)
            else:
                file.write(save(content, metadata={"format": "pt", DIGEST: digest(content)}))
        written.append(path)
    return written
