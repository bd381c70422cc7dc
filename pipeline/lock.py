"""The lock of a scene's folder: one run at a time, its tasks' processes included."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..files.whole import running
from .process import Interrupt
from .watcher import GRACE

Note = Callable[..., None]  # takes the numbers of processes that work in the folder now


@contextlib.contextmanager
def locked(folder: Path, interrupt: Interrupt | None = None) -> Iterator[Note]:
    """One run at a time works in a scene's folder; a second one is a ValueError.

    Yields what notes a task's processes: those that outlive their run for a moment keep the next
    one waiting. `.holders` has a line for each process, the run's first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holders = folder / ".holders"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise busy(folder, first_of(lines(holders))) from None

    def note(*processes: int) -> None:
        holders.write_text("".join(f"{line_of(pid)}\n" for pid in (os.getpid(), *processes)))

    try:
        wait_for_step(folder, lines(holders), interrupt)
        note()
        try:
            yield note
        finally:
            holders.unlink(missing_ok=True)
    finally:
        lock.release()


def wait_for_step(folder: Path, noted: list[str], interrupt: Interrupt | None) -> None:
    """Waits as long as a task of a run that is gone may need to end.

    Raises:
        ValueError: it doesn't end, or nobody wants to wait any more.
    """
    until = time.monotonic() + GRACE + 15
    left = [line for line in noted if lives(line)]
    if left:
        print(f"Waiting for a task of a run that is gone (process {first_of(noted)}).", flush=True)
    while left:
        if (interrupt is not None and interrupt.asked) or time.monotonic() > until:
            raise busy(folder, first_of(left))
        time.sleep(0.2)
        left = [line for line in left if lives(line)]


def busy(folder: Path, holder: str) -> ValueError:
    return ValueError(
        f"Another run (process {holder}) is at work in {folder}. "
        "Wait for it, or stop it with Ctrl-C where it runs."
    )


def lines(holders: Path) -> list[str]:
    return holders.read_text().splitlines() if holders.is_file() else []


def first_of(noted: list[str]) -> str:
    return noted[0].split()[0] if noted else "unknown"


def line_of(pid: int) -> str:
    """A process that can be told from a later one of the same number."""
    with contextlib.suppress(psutil.Error):
        return f"{pid} {psutil.Process(pid).create_time()}"
    return f"{pid} ended"


def lives(line: str) -> bool:
    """Whether a process of `.holders` is still at work."""
    pid = line.split()[0]
    return pid.isdigit() and line_of(int(pid)) == line and running(int(pid))
