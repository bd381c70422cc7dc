"""What a process tells the one that started it: events, as JSON lines in a file.

Whoever starts a task names the file in the variable THREESTUDIO_EVENTS and reads it with `Reader`;
where nobody does, nothing is written. A line is `{"event": "progress", "done": 80, "total": 200,
"of": "training"}`. It is written at once and in one piece, so several processes may share a file.
Nothing but the standard library is imported here.
"""

import functools
import json
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

VARIABLE = "THREESTUDIO_EVENTS"
EVERY = 0.25  # seconds between two lines of progress
TRAINING = "training"
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Event:
    """One line of the file."""


@dataclass(frozen=True)
class Progress(Event):
    done: int
    total: int
    of: str = TRAINING  # what is counted


@dataclass(frozen=True)
class PeakMemory(Event):
    gpu: float  # GB, of one process


@dataclass(frozen=True)
class Message(Event):
    """Words for a person."""

    text: str
    level: Level = "info"


KINDS: dict[str, type[Event]] = {
    "progress": Progress,
    "peak_memory": PeakMemory,
    "message": Message,
}
NAMES = {kind: name for name, kind in KINDS.items()}


# ---------------------------------------------------------------------------------- writing


class Writer:
    """Appends events to a file. A file that can't be written is said once, and ends no task."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: int | None = None
        self._counted, self._due = "", 0.0  # what, and when its next line may come
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._give_up(error)

    def write(self, event: Event) -> None:
        if self._file is None:
            return
        line = json.dumps({"event": NAMES[type(event)], **asdict(event)}) + "\n"
        try:
            os.write(self._file, line.encode())
        except OSError as error:
            self._give_up(error)

    def progress(self, event: Progress) -> None:
        """Writes the first and the last of what is counted, and between them one now and then."""
        now = time.monotonic()
        if now < self._due and event.done < event.total and event.of == self._counted:
            return
        self._counted, self._due = event.of, now + EVERY
        self.write(event)

    def _give_up(self, error: OSError) -> None:
        self._file = None
        print(f"No events are written to {self.path}: {error.strerror}.", file=sys.stderr)


@functools.lru_cache(maxsize=1)
def _writer_of(path: str) -> Writer:
    return Writer(path)


def writer() -> Writer | None:
    """Of the file that this process was given; None if it wasn't given one."""
    path = os.environ.get(VARIABLE)
    return _writer_of(path) if path else None


def progress(done: int, total: int, of: str = TRAINING) -> None:
    """So many of the total are done; may be called in every step."""
    if found := writer():
        found.progress(Progress(done, total, of))


def peak_memory(gpu: int) -> None:
    """The most GPU memory that this process had so far, in bytes."""
    if found := writer():
        found.write(PeakMemory(round(gpu / 1e9, 3)))


def message(text: str, level: Level = "info") -> None:
    if found := writer():
        found.write(Message(text.strip(), level))


def say(text: str) -> None:
    """Prints a line, and tells it."""
    print(text, flush=True)
    message(text)


def say_error(text: object) -> None:
    """Prints why a task ends, and tells it."""
    print(f"error: {text}", file=sys.stderr)
    message(str(text), "error")


class Handler(logging.Handler):
    """Tells a logger's messages, but for those whose record is marked as an `aside`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "aside", False):
            levels: dict[str, Level] = {"INFO": "info", "WARNING": "warning"}
            message(record.getMessage(), levels.get(record.levelname, "error"))


def tell_messages() -> None:
    """From now on what the logger `threestudio` says and Python's warnings are told, beside being
    shown; where nobody reads, it does nothing."""
    if writer() is None:
        return
    logger = logging.getLogger("threestudio")
    if not any(isinstance(handler, Handler) for handler in logger.handlers):
        if not logger.handlers and logging.lastResort:  # it shows warnings where nobody else does
            logger.addHandler(logging.lastResort)
        logger.addHandler(Handler())
    show = warnings.showwarning

    def tell(
        text: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(text, category, filename, lineno, file, line)
        message(str(text), "warning")

    warnings.showwarning = tell


# ---------------------------------------------------------------------------------- reading


class Reader:
    """The events of a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes, up to the end of a whole line

    def new(self) -> list[Event]:
        """Those since the last call. What is no event, such as a line of a newer writer or half a
        one, is passed over.

        Raises:
            OSError: the file is there, but can't be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                block = file.read()
        except FileNotFoundError:
            return []
        whole = block[: block.rfind(b"\n") + 1]
        self._read += len(whole)
        found = (parse(line) for line in whole.splitlines())
        return [event for event in found if event is not None]


def parse(line: bytes) -> Event | None:
    try:
        held = json.loads(line)
        return KINDS[held.pop("event")](**held)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
