"""JSON files, read such that an error says which file it is about."""

import json
import os
from pathlib import Path
from typing import Any

from ..git_lfs import refuse_pointer


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: it is damaged, cut off, a Git LFS pointer, or holds no object.
        OSError: it isn't there, or can't be opened.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}. Take another copy of its folder.")
    refuse_pointer(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, or of the encoding
        raise ValueError(
            f"{str(path)!r} cannot be read as JSON ({error}): it is damaged, cut off, or something "
            "else. Take another copy of it."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__}, but an object {{...}} is needed. "
            "Take another copy of it."
        )
    return content
