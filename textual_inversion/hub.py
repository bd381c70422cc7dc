"""--push_to_hub: a repository with the learned word, its pictures and its loss curve."""

from pathlib import Path

import huggingface_hub

CARD = """---
tags: [textual_inversion, stable-diffusion, diffusers]
base_model: {model}
---
A learned word: `pipeline.load_textual_inversion("{repository}")`, then `{word}` in a prompt.
"""


def make_repository(name: str, token: str | None) -> str:
    """The repository's full id. Made before the training, so that a wrong token shows at once.

    Raises:
        ValueError: no network, or no right to write there.
    """
    try:
        return huggingface_hub.create_repo(name, token=token, exist_ok=True).repo_id
    except Exception as error:
        raise ValueError(
            f"--push_to_hub: the hub can't be reached or refuses ({error}). Run `hf auth login` or "
            "pass --hub_token, or leave --push_to_hub out."
        ) from error


def push(folder: Path, repository: str, token: str | None, *, model: str, word: str) -> str:
    """Uploads a run's folder without checkpoints, logs and earlier runs; the repository's
    address."""
    card = CARD.format(model=model, repository=repository, word=word)
    (folder / "README.md").write_text(card, encoding="utf-8")
    huggingface_hub.upload_folder(
        repo_id=repository,
        folder_path=folder,
        ignore_patterns=["checkpoint-*/*", "earlier-*/*", "logs/*", ".*"],
        token=token,
    )
    return f"https://huggingface.co/{repository}"
