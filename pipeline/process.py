"""A step's process: its output line by line, how long it took, its memory, and how it is stopped.

Children live in sessions of their own, so that Ctrl-C reaches only us, and we pass it on once: a
stage then finishes its step and saves. A second one kills. A child whose run is gone, however it
ended, is stopped in the same way by a watcher (watcher.py).
"""

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO

from . import watcher

STOPPED = 130  # exit code after Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINGER = 10.0  # seconds that what a process started may outlive it
CURSOR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
# as pipeline/result.py and launch.py say it (GB), and textual_inversion.py (GiB)
GPU_MEMORY = re.compile(r"Peak GPU memory: ([\d.]+) GB|at most ([\d.]+) GiB")


class Interrupt:
    """Passes Ctrl-C on to the children; SIGTERM (a job's end) and SIGHUP count as one too."""

    def __init__(self, second: int = signal.SIGKILL) -> None:
        self.second = second  # what the children get when it is pressed again
        self.children: set[subprocess.Popen] = set()
        self.asked = False

    def add(self, child: subprocess.Popen) -> None:
        """A child that was started; one that missed a Ctrl-C is told now."""
        before = self.asked
        self.children.add(child)
        if before:
            self._tell(child, first=True)

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask()

    def ask(self) -> None:
        """Ctrl-C, wherever it comes from."""
        first, self.asked = not self.asked, True
        for child in list(self.children):
            self._tell(child, first)

    def _tell(self, child: subprocess.Popen, first: bool) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            if first:
                os.kill(child.pid, signal.SIGINT)
            else:
                os.killpg(child.pid, self.second)  # a child leads its session


@dataclass
class Outcome:
    """How a process ended."""

    code: int
    seconds: float
    peak_memory: dict[str, float] = field(default_factory=dict)  # GB: "host", "gpu"


def lines_of(
    process: subprocess.Popen, over: Callable[[], bool], every: float = 0.5
) -> Iterator[str]:
    """The process's output as it comes, to its end or until `over`, which is asked meanwhile, about
    every so many seconds.

    A progress bar's new state (after a carriage return) is a line too.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(every):
                if over():
                    break
                continue
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                break
            *whole, rest = re.split(rb"[\r\n]", rest + block)
            for line in whole:
                yield plain(line)
            if over():
                break
    if rest:
        yield plain(rest)


def plain(line: bytes) -> str:
    """As text, without what moves a terminal's cursor."""
    return CURSOR.sub("", line.decode(errors="replace")).rstrip()


def start(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    interrupt: Interrupt,
    holds: Sequence[int] = (),
) -> subprocess.Popen:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=holds,
    )
    interrupt.add(process)
    return process


def watch(process: subprocess.Popen, log: Path, holds: Sequence[int]) -> subprocess.Popen:
    """Starts the watcher of a process; it is to be killed when the process has ended."""
    output = process.stdout.fileno()
    words = [str(process.pid), str(output), str(log)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", watcher.__file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(output, *holds),
    )


def peak_resident(pid: int) -> int:
    """The most memory that a running process had so far, KiB; 0 where that can't be known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or gone
        return 0
    match = re.search(r"VmHWM:\s+(\d+)", status)
    return int(match[1]) if match else 0


def write_line(log: BinaryIO, line: str) -> None:
    """
    Raises:
        OSError: with the log's name, which a full disk doesn't say by itself.
    """
    try:
        log.write(f"{line}\n".encode(errors="replace"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, log.name) from error


class Child:
    """A process from its start to its end."""

    def __init__(self, process: subprocess.Popen, interrupt: Interrupt) -> None:
        self.process, self.interrupt = process, interrupt
        self.usage: resource.struct_rusage | None = None  # once it has ended
        self._ended = 0.0
        self._resident = 0  # KiB

    def look(self) -> bool:
        """Whether there is nothing to wait for: what outlives a process for long is killed."""
        if self.usage is None:
            self._resident = max(self._resident, peak_resident(self.process.pid))
            self.reap(os.WNOHANG)
        elif time.monotonic() - self._ended > LINGER:
            watcher.kill_group(self.process.pid)
            return True
        return False

    def reap(self, options: int = 0) -> None:
        """Waits for its end, or with os.WNOHANG sees if it has come."""
        if self.usage is not None:
            return
        pid, status, usage = os.wait4(self.process.pid, options)
        if pid == 0:
            return
        self.interrupt.children.discard(self.process)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.usage, self._ended = usage, time.monotonic()

    def peak_memory(self) -> float | None:
        """GB; None where that can't be known."""
        # a child starts as a copy of us, figure included: one no larger than ours says nothing
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kib = self.usage.ru_maxrss if self.usage.ru_maxrss > ours else self._resident
        return kib * 1024 / 1e9 if kib else None


def run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    interrupt: Interrupt,
    on_line: Callable[[str], None],
    tick: Callable[[], None],
    holds: Sequence[int] = (),
) -> Outcome:
    """Runs a command to its end; everything that it prints also goes to the file `log`.

    holds: files that stay open as long as the process runs, a lock for instance. Whatever goes
    wrong here (a full disk, a broken pipe) also ends the process, as Ctrl-C would.

    Raises:
        OSError: the log can't be written.
    """
    began = time.monotonic()
    peak: dict[str, float] = {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        write_line(file, f"$ {' '.join(command)}")
        process = start(command, cwd, environment, interrupt, holds)
        guard = watch(process, log, holds)
        child = Child(process, interrupt)

        def over() -> bool:
            tick()
            return child.look()

        try:
            for line in lines_of(process, over):
                write_line(file, line)
                if match := GPU_MEMORY.search(line):
                    peak["gpu"] = float(match[1] or float(match[2]) * 2**30 / 1e9)
                on_line(line)
        except BaseException:
            watcher.end(process.pid, process.stdout.fileno(), log)
            raise
        finally:
            child.reap()
            guard.kill()
            guard.wait()
            guard.stdin.close()
            process.stdout.close()
    if (host := child.peak_memory()) is not None:
        peak["host"] = host
    return Outcome(process.returncode, time.monotonic() - began, peak)
