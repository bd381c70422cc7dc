"""A step's process: its output line by line, how long it took, its memory, and how it is stopped.

Children live in sessions of their own, so that Ctrl-C reaches only us, and we pass it on once: a
stage then finishes its step and saves. A second one kills.
"""

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

STOPPED = 130  # exit code after Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CURSOR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
# as pipeline/result.py and launch.py say it (GB), and textual_inversion.py (GiB)
GPU_MEMORY = re.compile(r"Peak GPU memory: ([\d.]+) GB|at most ([\d.]+) GiB")


class Interrupt:
    """Passes Ctrl-C on to the children; SIGTERM (a job's end) and SIGHUP count as one too."""

    def __init__(self, second: int = signal.SIGKILL) -> None:
        self.second = second  # what the children get when it is pressed again
        self.children: set[subprocess.Popen] = set()
        self.asked = False

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
        first, self.asked = not self.asked, True
        for child in list(self.children):
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
    process: subprocess.Popen, tick: Callable[[], None], every: float = 0.5
) -> Iterator[str]:
    """The process's output as it comes; `tick` is called meanwhile, about every so many seconds.

    A progress bar's new state (after a carriage return) is a line too.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(every):
                tick()
                continue
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                break
            *whole, rest = re.split(rb"[\r\n]", rest + block)
            for line in whole:
                yield plain(line)
            tick()
    if rest:
        yield plain(rest)


def plain(line: bytes) -> str:
    """As text, without what moves a terminal's cursor."""
    return CURSOR.sub("", line.decode(errors="replace")).rstrip()


def start(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], interrupt: Interrupt
) -> subprocess.Popen:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    interrupt.children.add(process)
    return process


def peak_resident(pid: int) -> int:
    """The most memory that a running process had so far, KiB; 0 where that can't be known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or gone
        return 0
    match = re.search(r"VmHWM:\s+(\d+)", status)
    return int(match[1]) if match else 0


def run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    interrupt: Interrupt,
    on_line: Callable[[str], None],
    tick: Callable[[], None],
) -> Outcome:
    """Runs a command to its end; everything that it prints also goes to the file `log`."""
    began = time.monotonic()
    peak: dict[str, float] = {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1, encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = start(command, cwd, environment, interrupt)
        resident = 0

        def look() -> None:
            nonlocal resident
            resident = max(resident, peak_resident(process.pid))
            tick()

        for line in lines_of(process, look):
            file.write(line + "\n")
            if match := GPU_MEMORY.search(line):
                peak["gpu"] = float(match[1] or float(match[2]) * 2**30 / 1e9)
            on_line(line)
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    interrupt.children.discard(process)
    # a child starts as a copy of us, figure included: one no larger than ours says nothing
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib = usage.ru_maxrss if usage.ru_maxrss > ours else resident
    if kib:
        peak["host"] = kib * 1024 / 1e9
    return Outcome(process.returncode, time.monotonic() - began, peak)
