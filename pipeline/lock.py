"""The lock of a scene's folder: one run at a time, its steps' processes included."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..files.whole import running
from .process import Interrupt
from .watcher import GRACE


@contextlib.contextmanager
def locked(folder: Path, interrupt: Interrupt | None = None) -> Iterator[int]:
    """One run at a time works in a scene's folder; a second one is a ValueError.

    Yields the number of the lock's file: a process that inherits it holds the lock as well, so that
    a step which outlives its run for a moment keeps the next one waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        wait_for_lock(file, folder, interrupt)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def wait_for_lock(file: TextIO, folder: Path, interrupt: Interrupt | None) -> None:
    """Takes the lock; waits for it as long as a step of a run that is gone may need to end.

    Raises:
        ValueError: another run has it.
    """
    until = time.monotonic() + GRACE + 15
    waiting = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
        asked = interrupt is not None and interrupt.asked
        if asked or time.monotonic() > until or (holder.isdigit() and running(int(holder))):
            raise ValueError(
                f"Another run (process {holder}) is at work in {folder}. "
                "Wait for it, or stop it with Ctrl-C where it runs."
            )
        if not waiting:
            print(f"Waiting for a step of a run that is gone (process {holder}).", flush=True)
        waiting = True
        time.sleep(0.2)
