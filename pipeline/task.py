"""A task of the pipeline: one command that works by itself, what it reads and what it writes."""

import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from .manifest import file_hash, settings_hash
from .places import ROOT, shown
from .presets import Cost


@dataclass
class Task:
    """`settings` and the contents of `reads` decide whether it has to run."""

    name: str
    command: list[str]  # after the interpreter
    folder: Path  # everything that it writes is in here
    settings: dict[str, Any]
    reads: dict[str, Path]
    outputs: list[Path]
    cost: Cost
    steps: int | None = None  # training steps; None: it doesn't train
    copies: tuple[tuple[Path, Path], ...] = ()  # files that are copied first: from, to
    checkpoint: Path | None = None  # what a half-done task goes on from
    resume: list[str] = field(default_factory=list)  # words that make it go on
    slight: tuple[str, ...] = ()  # patterns of its files that are worth nothing by themselves
    # of the names in its folder, patterns of those that are its own, and of another task's
    own: tuple[str, ...] = ("*",)
    others: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()  # folders and hub ids that it reads

    @cached_property
    def _settings_hash(self) -> str:
        return settings_hash(self.settings)

    def inputs(self) -> str | None:
        """Hash of all that decides about the task; None while a file that it reads is missing."""
        contents = {label: file_hash(path) for label, path in self.reads.items()}
        if None in contents.values():
            return None
        return settings_hash([self.name, self._settings_hash, contents])

    def owns(self, name: str) -> bool:
        """Whether a file or folder directly in its folder is its own."""
        return not matches(name, self.others) and matches(name, self.own)

    def words(self, again: bool = False) -> list[str]:
        """The command line; `again`: to go on where the task stopped."""
        script, *rest = self.command
        return [shown(ROOT / script), *rest, *(self.resume if again else [])]

    def told(self, text: str) -> str:
        """What the command says, with the person's files for the copies that it was given."""
        for source, target in self.copies:
            text = text.replace(str(target), str(source))
        return text

    def shown(self, again: bool = False) -> str:
        """As it would be typed, with the copy before it."""
        variables = "".join(f"{k}={shlex.quote(v)} " for k, v in self.environment.items())
        line = f"{variables}{shlex.join([interpreter(), *self.words(again)])}"
        copied = [shlex.join(["cp", str(source), str(target)]) for source, target in self.copies]
        if copied:
            folder = shlex.quote(str(self.copies[0][1].parent))
            line = f"{' && '.join([f'mkdir -p {folder}', *copied])}\n{line}"
        return line


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def interpreter(folder: Path = ROOT) -> str:
    """`python` where that is the one that runs now, else its path, for commands run in `folder`."""
    found = shutil.which("python")
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    if same:
        return "python"
    return shown(Path(sys.executable)) if folder == ROOT else sys.executable
