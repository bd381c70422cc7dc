"""Text embeddings of prompts, kept on disk under the working directory, one file an embedding.

A file's name is a hash of everything that shapes the embedding: the model's tokenizer and text
encoder (the hub's commit, or the contents of a local folder), the prompt, and the learned tokens
with their values. Two models or two tokens never share an entry. Files appear in one piece (written
aside and renamed) and hold a digest; one that isn't what was written is made again, and where
nothing can be written, nothing is kept.
"""

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import threestudio
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from threestudio.utils.misc import barrier, cleanup, get_rank
from torch import Tensor

from ..files.torch_files import DIGEST, digest
from ..files.whole import clear_parts, whole_file
from .models import fingerprint
from .text_encoder import LearnedTokens, TextEncoder, token_pattern

FOLDER = Path(".threestudio_cache/text_embeddings")  # where threestudio keeps its own
FORMAT = "2"  # of the entries and of how a prompt is encoded; a new number leaves old files unread

Entry = tuple[Tensor, str]  # embedding [L D], and the part of the prompt that was cut off


def entry_key(source: str, prompt: str, learned: LearnedTokens) -> str:
    """sha256 over lengths and contents, so that no two lists of parts look the same."""
    parts = [FORMAT.encode(), source.encode(), prompt.encode()]
    for token, vectors in sorted(learned.items()):
        values = vectors.detach().cpu().float().contiguous()
        parts += [token.encode(), str(tuple(values.shape)).encode(), values.numpy().tobytes()]
    key = hashlib.sha256()
    for part in parts:
        key.update(len(part).to_bytes(8, "big") + part)
    return key.hexdigest()


def read_entry(path: Path) -> Entry | None:
    """None where there is no entry, or, with a warning, where it isn't what was written."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            held = file.metadata()
            entry = file.get_tensor("embedding"), held["cut"]
        if held[DIGEST] == digest({"embedding": entry[0]}, entry[1]):
            return entry
        problem = "its digest is another"
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = error
    threestudio.warn(f"The text embedding {path} can't be read ({problem}); making it again.")
    return None


def write_entry(path: Path, entry: Entry, prompt: str) -> None:
    """
    Raises:
        OSError, SafetensorError: there can't be written.
    """
    tensors = {"embedding": entry[0].contiguous()}
    held = {"cut": entry[1], "prompt": prompt, DIGEST: digest(tensors, entry[1])}
    with whole_file(path) as part:
        save_file(tensors, part, held)


def write_entries(made: Mapping[str, tuple[Path, Entry]]) -> None:
    """By prompt. A cache that can't be written to (full, read-only, another's) is one warning."""
    try:
        clear_parts(FOLDER)
        for prompt, (path, entry) in made.items():
            write_entry(path, entry, prompt)
    except (OSError, SafetensorError) as error:
        threestudio.warn(
            f"Text embeddings can't be kept in {FOLDER.absolute()} ({error}), so each run encodes "
            "its prompts anew; use_cache=false says that this is fine."
        )


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
        del encoder
        cleanup()
        if use_cache:
            write_entries({prompt: (paths[prompt], entries[prompt]) for prompt in missing})
    return entries


def used_tokens(prompts: Sequence[str], learned: LearnedTokens) -> LearnedTokens:
    """The tokens that a prompt has; others needn't fit the model, and don't shape an embedding."""
    if not learned:
        return {}
    pattern = token_pattern(list(learned))
    found = {token for prompt in prompts for token in pattern.findall(prompt)}
    return {token: vectors for token, vectors in learned.items() if token in found}


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
    learned = used_tokens(prompts, learned or {})
    if get_rank() != 0:
        barrier()
    try:
        entries = make_entries(model, prompts, learned, device, use_cache)
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
