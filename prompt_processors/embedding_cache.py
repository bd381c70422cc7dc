"""Text embeddings of prompts, kept on disk under the working directory, one file an embedding.

A file's name is a hash of everything that shapes the embedding: the model's tokenizer and text
encoder (the hub's commit, or the contents of a local folder), the prompt, and the learned tokens
with their values. Two models or two tokens never share an entry. Files appear in one piece (written
aside and renamed), and one that can't be read is made again.
"""

import hashlib
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import threestudio
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from threestudio.utils.misc import barrier, cleanup, get_rank
from torch import Tensor

from ..guidance.models import fingerprint
from .text_encoder import LearnedTokens, TextEncoder

FOLDER = Path(".threestudio_cache/text_embeddings")  # where threestudio keeps its own
FORMAT = "1"  # of the entries and of how a prompt is encoded; a new number leaves old files unread

Entry = tuple[Tensor, str]  # embedding [L D], and the part of the prompt that was cut off


def entry_key(source: str, prompt: str, learned: LearnedTokens) -> str:
    """sha256 over lengths and contents, so that no two lists of parts look the same."""
    parts = [FORMAT.encode(), source.encode(), prompt.encode()]
    for token, vectors in sorted(learned.items()):
        values = vectors.detach().cpu().float().contiguous()
        parts += [token.encode(), str(tuple(values.shape)).encode(), values.numpy().tobytes()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def read_entry(path: Path) -> Entry | None:
    """None where there is no entry, or, with a warning, where it can't be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("embedding"), file.metadata()["cut"]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        threestudio.warn(f"The text embedding {path} can't be read ({error}); making it again.")
        return None


def write_entry(path: Path, entry: Entry, prompt: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"embedding": entry[0].contiguous()}, aside, {"cut": entry[1], "prompt": prompt})
    os.replace(aside, path)


def make_entries(
    model: str,
    prompts: Sequence[str],
    learned: LearnedTokens,
    device: torch.device | str,
    use_cache: bool,
) -> dict[str, Entry]:
    """An entry of each prompt, from the cache where it is there; new ones are written to it."""
    paths: dict[str, Path] = {}
    entries: dict[str, Entry | None] = dict.fromkeys(prompts)
    if use_cache:
        source = fingerprint(model, ("tokenizer", "text_encoder"))
        for prompt in entries:
            paths[prompt] = FOLDER / (entry_key(source, prompt, learned) + ".safetensors")
            entries[prompt] = read_entry(paths[prompt])
    missing = [prompt for prompt, entry in entries.items() if entry is None]
    if missing:
        encoder = TextEncoder(model, learned, device)
        for prompt in missing:
            entries[prompt] = encoder.encode(prompt)
            if use_cache:
                write_entry(paths[prompt], entries[prompt], prompt)
        del encoder
        cleanup()
    return entries


def text_embeddings(
    model: str,
    prompts: Sequence[str],
    *,
    learned: LearnedTokens | None = None,
    device: torch.device | str = "cpu",
    use_cache: bool = True,
) -> Float[Tensor, "P L D"]:
    """One embedding a prompt, in the order of `prompts`; a prompt that was cut is warned about.

    Among several processes rank zero goes first and fills the cache, the others read it. A process
    that doesn't find an entry (another machine, no cache) makes its own.
    """
    if get_rank() != 0:
        barrier()
    try:
        entries = make_entries(model, prompts, learned or {}, device, use_cache)
    finally:
        if get_rank() == 0:
            barrier()
    for prompt, (_, cut) in entries.items():
        if cut:
            threestudio.warn(
                f"The prompt {textwrap.shorten(prompt, 60)!r} is longer than the text encoder of "
                f"{model} reads. Not read: {textwrap.shorten(cut, 300)!r}. Give a shorter one."
            )
    return torch.stack([entries[prompt][0] for prompt in prompts]).to(device)
