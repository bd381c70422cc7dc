"""A small process beside each task's: ends the task if its run is gone, killed for instance.

python watcher.py PID OUTPUT LOG

PID leads a process group; OUTPUT is the number of the inherited file where its words come out,
which go on into LOG. The standard input is a pipe whose other end the run alone holds, and never
writes to: it ends with the run, however that ends. Nothing of the package is imported here.
"""

import contextlib
import os
import selectors
import signal
import sys
import time
from pathlib import Path

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has but one end
GRACE = 60.0  # seconds in which a task may finish what it does and save


def end(pid: int, output: int, log: Path, grace: float = GRACE) -> None:
    """Ctrl-C for a process; after `grace` seconds it is killed with its group.

    Returns when nobody is left who could print.
    """
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        os.kill(pid, signal.SIGINT)
    if not drain(output, log, grace):
        kill_group(pid)
        drain(output, log, 1.0)


def kill_group(pid: int) -> None:
    """What a process started, and itself if it lives."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(pid, KILL)


def drain(output: int, log: Path, seconds: float) -> bool:
    """Moves what comes into the log, for so long; whether the end came."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            block = os.read(output, 1 << 16)
            if not block:
                return True
            with contextlib.suppress(OSError), log.open("ab") as file:  # a full disk, perhaps
                file.write(block.replace(b"\r", b"\n"))
    return False


def main() -> None:
    pid, output, log = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.read(0, 1)  # returns when the run is gone
    end(pid, output, log)


if __name__ == "__main__":
    main()
