"""What a task made before it starts anew is kept in `earlier/<task>-<n>` of the scene's folder."""

import os
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from .task import Task


def put_aside(task: Task) -> Path | None:
    """Makes room for a task that starts anew; returns where its folder went.

    None: there was nothing, or only the task's own files that are worth nothing by themselves.
    """
    folder = task.folder
    if not os.path.lexists(folder):
        return None
    if folder.is_dir() and not folder.is_symlink() and is_slight(folder, task.slight):
        shutil.rmtree(folder)
        return None
    earlier = folder.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    there = [re.fullmatch(rf"{folder.name}-(\d+)", path.name) for path in earlier.iterdir()]
    last = max((int(match[1]) for match in there if match), default=0)
    target = earlier / f"{folder.name}-{last + 1}"
    os.rename(folder, target)
    return target


def is_slight(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether each file below the folder matches one of the patterns."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    ]
    return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)
