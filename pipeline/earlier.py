"""What a task made before it starts anew is kept in `earlier/<task>-<n>` of the scene's folder."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from .task import Task, matches


def put_aside(task: Task) -> Path | None:
    """Makes room for a task that starts anew; returns where what it made before went: its folder,
    or, where that has other tasks' files too, what is its own.

    None: there was nothing, or only the task's own files that are worth nothing by themselves.
    """
    folder = task.folder
    if not os.path.lexists(folder):
        return None
    shared = folder.is_dir() and not all(task.owns(path.name) for path in folder.iterdir())
    parts = [path for path in folder.iterdir() if task.owns(path.name)] if shared else [folder]
    if folder.is_dir() and not folder.is_symlink() and is_slight(parts, folder, task.slight):
        for path in parts:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return None
    earlier = folder.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    name = task.name if shared else folder.name
    there = [re.fullmatch(rf"{name}-(\d+)", path.name) for path in earlier.iterdir()]
    last = max((int(match[1]) for match in there if match), default=0)
    target = earlier / f"{name}-{last + 1}"
    if not shared:
        os.rename(folder, target)
        return target
    target.mkdir()
    for path in parts:
        os.rename(path, target / path.name)
    return target


def is_slight(parts: Iterable[Path], folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether each file in or below some paths of a folder matches one of the patterns."""
    names = [
        path.relative_to(folder).as_posix()
        for part in parts
        for path in [part, *part.rglob("*")]
        if path.is_symlink() or not path.is_dir()
    ]
    return all(matches(name, patterns) for name in names)
