"""Text embeddings of prompts, kept on disk under the working directory, one file an embedding.

A file's name is a hash of everything that shapes the embedding: the model's tokenizer and text
encoder (the hub's commit, or the contents of a local folder), the prompt, the learned tokens with
their values, and how many tokens a row has, where that was asked for. Two models or two tokens
never share an entry. Files appear in one piece (written aside and renamed) and hold a digest; one
that isn't what was written is made again, and where nothing can be written, nothing is kept.
"""

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import threestudio
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from threestudio.utils.misc import barrier, cleanup, get_rank
from torch import Tensor

from ..files.torch_files import DIGEST, digest
from ..files.whole import clear_parts, whole_file
from .learned_tokens import LearnedTokens, token_pattern
from .models import fingerprint
from .text_readers import Text, reader_of

FOLDER = Path(".threestudio_cache/text_embeddings")  # where threestudio keeps its own
FORMAT = "2"  # of the entries and of how a prompt is encoded; a new number leaves old files unread


class Texts(NamedTuple):
    """Prompts, read."""

    embeddings: Float[Tensor, "P L D"]
    mask: Bool[Tensor, "P L"] | None  # tokens that count; None: all, padding too


def entry_key(source: str, prompt: str, learned: LearnedTokens, length: int | None = None) -> str:
    """sha256 over lengths and contents, so that no two lists of parts look the same."""
    parts = [FORMAT.encode(), source.encode(), prompt.encode()]
    for token, vectors in sorted(learned.items()):
        values = vectors.detach().cpu().float().contiguous()
        parts += [token.encode(), str(tuple(values.shape)).encode(), values.numpy().tobytes()]
    if length is not None:
        parts.append(str(length).encode())
    key = hashlib.sha256()
    for part in parts:
        key.update(len(part).to_bytes(8, "big") + part)
    return key.hexdigest()


def tensors_of(text: Text) -> dict[str, Tensor]:
    """What an entry holds of it; one that was written before there were masks reads the same."""
    named = {"embedding": text.embedding, "mask": text.mask}
    return {name: value.contiguous() for name, value in named.items() if value is not None}


def read_entry(path: Path) -> Text | None:
    """None where there is no entry, or, with a warning, where it isn't what was written."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            held = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = Text(tensors["embedding"], tensors.get("mask"), held["cut"])
        if held[DIGEST] == digest(tensors, text.cut):
            return text
        problem = "its digest is another"
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = error
    threestudio.warn(f"The text embedding {path} can't be read ({problem}); making it again.")
    return None


def write_entry(path: Path, text: Text, prompt: str) -> None:
    """
    Raises:
        OSError, SafetensorError: there can't be written.
    """
    tensors = tensors_of(text)
    held = {"cut": text.cut, "prompt": prompt, DIGEST: digest(tensors, text.cut)}
    with whole_file(path) as part:
        save_file(tensors, part, held)


def write_entries(made: Mapping[str, tuple[Path, Text]]) -> None:
    """By prompt. A cache that can't be written to (full, read-only, another's) is one warning."""
    try:
        clear_parts(FOLDER)
        for prompt, (path, text) in made.items():
            write_entry(path, text, prompt)
    except (OSError, SafetensorError) as error:
        threestudio.warn(
            f"Text embeddings can't be kept in {FOLDER.absolute()} ({error}), so each run encodes "
            "its prompts anew; use_cache=false says that this is fine."
        )


def cached_texts(
    model: str,
    prompts: Sequence[str],
    learned: LearnedTokens,
    device: torch.device | str,
    use_cache: bool,
    length: int | None,
) -> dict[str, Text]:
    """Each prompt, from the cache where it is there; new ones are written to it."""
    paths: dict[str, Path] = {}
    texts: dict[str, Text] = {}
    if use_cache:
        source = fingerprint(model, ("tokenizer", "text_encoder"))
        for prompt in dict.fromkeys(prompts):
            paths[prompt] = FOLDER / (entry_key(source, prompt, learned, length) + ".safetensors")
            if (text := read_entry(paths[prompt])) is not None:
                texts[prompt] = text
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
    if missing:
        reader = reader_of(model)(model, learned, device, length)
        for prompt in missing:
            texts[prompt] = reader.read(prompt)
        del reader
        cleanup()
        if use_cache:
            write_entries({prompt: (paths[prompt], texts[prompt]) for prompt in missing})
    return texts


def used_tokens(prompts: Sequence[str], learned: LearnedTokens) -> LearnedTokens:
    """The tokens that a prompt has; others needn't fit the model, and don't shape an embedding."""
    if not learned:
        return {}
    pattern = token_pattern(list(learned))
    found = {token for prompt in prompts for token in pattern.findall(prompt)}
    return {token: vectors for token, vectors in learned.items() if token in found}


def read_texts(
    model: str,
    prompts: Sequence[str],
    *,
    learned: LearnedTokens | None = None,
    device: torch.device | str = "cpu",
    use_cache: bool = True,
    length: int | None = None,
) -> Texts:
    """One embedding a prompt, in the order of `prompts`; a prompt that was cut is warned about.

    length: tokens of a row, where the model itself doesn't say (T5).

    Among several processes rank zero goes first and fills the cache, the others read it. A process
    that doesn't find an entry (another machine, no cache) makes its own.
    """
    learned = used_tokens(prompts, learned or {})
    if get_rank() != 0:
        barrier()
    try:
        texts = cached_texts(model, prompts, learned, device, use_cache, length)
    finally:
        if get_rank() == 0:
            barrier()
    for prompt, text in texts.items():
        if text.cut:
            threestudio.warn(
                f"The prompt {textwrap.shorten(prompt, 60)!r} is longer than the text encoder of "
                f"{model} reads. Not read: {textwrap.shorten(text.cut, 300)!r}. Give a shorter one."
            )
    masks = [texts[prompt].mask for prompt in prompts]
    counts = [mask for mask in masks if mask is not None]  # of one reader: all or none
    return Texts(
        torch.stack([texts[prompt].embedding for prompt in prompts]).to(device),
        torch.stack(counts).to(device) if counts else None,
    )
