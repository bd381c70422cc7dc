"""Git LFS: a clone made without it has small text files, its pointers, where large ones belong."""

import os

POINTER = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: str | os.PathLike) -> bool:
    """
    Raises:
        OSError: the file can't be opened.
    """
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER


def refuse_pointer(path: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: the file is a pointer; OSError: it can't be opened.
    """
    if is_pointer(path):
        raise ValueError(
            f"{str(path)!r} is a Git LFS pointer, not the file itself: its folder was cloned "
            "without Git LFS. Run `git lfs pull` in it, or download the file."
        )
