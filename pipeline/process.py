"""A task's process: its output line by line, how long it took, its memory, and how it is stopped.

Children live in sessions of their own, so that Ctrl-C reaches only us, and we pass it on once: a
stage then finishes its step and saves. A second one kills. A child whose run is gone, however it
ended, is stopped in the same way by a watcher (watcher.py).
"""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, BinaryIO, Protocol

import psutil

from ..events import VARIABLE, Event, PeakMemory, Reader
from . import watcher

STOPPED = 130  # exit code after Ctrl-C
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
LINGER = 10.0  # seconds that what a process started may outlive it
CURSOR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


class Process(Protocol):
    """A running command, in the terms of subprocess.Popen; its output is a pipe."""

    pid: int
    stdout: IO[bytes] | None

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


def hear_ends() -> None:
    """Whoever started us may have SIGCHLD ignored: then no exit code of a child is known."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def under_nohup(number: int) -> bool:
    """Whether a signal is a terminal's end, and isn't to end us."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


# a command, its working directory and its whole environment
Start = Callable[[Sequence[str], Path, Mapping[str, str]], Process]


class Interrupt:
    """Passes Ctrl-C on to the children; SIGTERM (a job's end) and SIGHUP count as one too."""

    def __init__(self, second: int = watcher.KILL) -> None:
        self.second = second  # what the children get when it is pressed again
        self.children: set[Process] = set()
        self.asked = False

    def add(self, child: Process) -> None:
        """A child that was started; one that missed a Ctrl-C is told now."""
        before = self.asked
        self.children.add(child)
        if before:
            self._tell(child, first=True)

    def __enter__(self) -> "Interrupt":
        hear_ends()
        heard = [number for number in SIGNALS if not under_nohup(number)]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
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

    def _tell(self, child: Process, first: bool) -> None:
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
    process: Process, over: Callable[[], bool], every: float = 0.5
) -> Iterator[tuple[str, bool]]:
    """The process's output as it comes, line by line, to its end or until `over`, which is asked
    meanwhile, about every so many seconds.

    Yields each line, and whether it stays: a progress bar's state, which ends with a carriage
    return, doesn't.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output_of(process), selectors.EVENT_READ)
        while True:
            if not selector.select(every):
                if over():
                    break
                continue
            block = os.read(output_of(process).fileno(), 1 << 16)
            if not block:
                break
            *whole, rest = re.split(rb"(?<=[\r\n])", rest + block)
            for line in whole:
                yield plain(line), line.endswith(b"\n")
            if over():
                break
    if rest:
        yield plain(rest), True


def plain(line: bytes) -> str:
    """As text, without what moves a terminal's cursor."""
    return CURSOR.sub("", line.decode(errors="replace")).rstrip()


def execute(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a command by itself; fork_server.py has another way."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def output_of(process: Process) -> IO[bytes]:
    """The pipe with what it prints."""
    assert process.stdout is not None  # `start` made it
    return process.stdout


def watch(process: Process, log: Path) -> subprocess.Popen:
    """Starts the watcher of a process; it is to be killed when the process has ended."""
    output = output_of(process).fileno()
    words = [str(process.pid), str(output), str(log)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", watcher.__file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(output,),
    )


def peak_resident(pid: int) -> int:
    """The most memory that a running process had so far, or where the system doesn't say that what
    it has now; bytes; 0 once it has ended."""
    try:
        memory = psutil.Process(pid).memory_info()
        status = Path(f"/proc/{pid}/status")  # Linux
        peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    except (psutil.Error, OSError):
        return 0
    return max(memory.rss, getattr(memory, "peak_wset", 0), int(peak[1]) * 1024 if peak else 0)


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

    def __init__(self, process: Process, interrupt: Interrupt) -> None:
        self.process, self.interrupt = process, interrupt
        self.ended: float | None = None  # when, by the monotonic clock
        self.peak = 0  # bytes of memory; 0 where that can't be known

    def look(self) -> bool:
        """Whether there is nothing to wait for: what outlives a process for long is killed."""
        if self.ended is None:
            self.peak = max(self.peak, peak_resident(self.process.pid))
            if self.process.poll() is not None:
                self.reap()
        elif time.monotonic() - self.ended > LINGER:
            watcher.kill_group(self.process.pid)
            return True
        return False

    def reap(self) -> None:
        """Waits for its end."""
        if self.ended is None:
            self.process.wait()
            self.interrupt.children.discard(self.process)
            self.ended = time.monotonic()


class Listener:
    """Hears what a process tells in a file beside its log, which is begun anew."""

    def __init__(self, log: Path, on_event: Callable[[Event], None]) -> None:
        self.path, self.on_event = log.with_suffix(".events.jsonl").absolute(), on_event
        self.peak: dict[str, float] = {}  # GB of GPU memory, the most of all its processes
        self.path.unlink(missing_ok=True)
        self._reader = Reader(self.path)

    def hear(self) -> None:
        for event in self._reader.new():
            if isinstance(event, PeakMemory):
                self.peak["gpu"] = max(event.gpu, self.peak.get("gpu", 0.0))
            else:
                self.on_event(event)


def run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    interrupt: Interrupt,
    on_line: Callable[[str], None],
    tick: Callable[[], None],
    note: Callable[[int, int], None] = lambda task, guard: None,
    on_event: Callable[[Event], None] = lambda event: None,
    start: Start = execute,
) -> Outcome:
    """Runs a command to its end; everything that it prints goes to the file `log`, its lines to
    `on_line`, but for a bar's states. What it tells (events.py) goes to a file beside the log and
    to `on_event`.

    note: is told the numbers of the process and of its watcher, once they run. Whatever goes wrong
    here (a full disk, a broken pipe) also ends the process, as Ctrl-C would.

    Raises:
        OSError: the log can't be written.
    """
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    listener = Listener(log, on_event)
    environment = {**UNBUFFERED, **environment, VARIABLE: str(listener.path)}
    with log.open("ab", buffering=0) as file:
        write_line(file, f"$ {' '.join(command)}")
        process = start(command, cwd, {**os.environ, **environment})
        interrupt.add(process)
        guard = watch(process, log)
        child = Child(process, interrupt)

        def over() -> bool:
            listener.hear()
            tick()
            return child.look()

        try:
            note(process.pid, guard.pid)
            for line, stays in lines_of(process, over):
                write_line(file, line)
                if stays:
                    on_line(line)
            listener.hear()
        except BaseException:
            watcher.end(process.pid, output_of(process).fileno(), log)
            raise
        finally:
            child.reap()
            guard.kill()
            guard.communicate()  # closes its pipe
            output_of(process).close()
    peak = listener.peak
    if child.peak:
        peak["host"] = child.peak / 1e9
    return Outcome(process.wait(), time.monotonic() - began, peak)
