"""Tasks as forks of a process that has the libraries: they are imported once, not by each task.

The server is a fork of the run's own process, made when that has imported the package and done
nothing with it yet: it has no GPU, no pool of threads, no file of a scene. A task is a fork of the
server, in a session of its own like one that was executed: its GPU memory is free once it ends, and
what breaks it breaks nothing else.
"""

import contextlib
import gc
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, NamedTuple, NoReturn

from . import watcher
from .process import SIGNALS, Start, execute, hear_ends

USABLE = sys.platform == "linux"  # elsewhere such forks aren't safe, or aren't there


class Call(NamedTuple):
    """What a task's process is made of."""

    words: list[str]  # a script and its arguments
    cwd: str
    environment: dict[str, str]


class Fork:
    """A task's process as the run sees it, in the terms of subprocess.Popen."""

    def __init__(self, pid: int, stdout: IO[bytes], server: Connection) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        if self.returncode is None and self._server.poll():
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it ends; the server's end, whatever that was, is one too."""
        if self.returncode is not None:
            return self.returncode
        try:
            self.returncode = code = int(self._server.recv())
            self._server.send(None)  # from now on its number may be another's
        except (EOFError, OSError):
            watcher.kill_group(self.pid)
            self.returncode = code = -watcher.KILL
        return code


class ForkServer:
    """Makes tasks' processes, one at a time, as long as its block lasts.

    It is forked as the block begins: before that nothing may have asked for a GPU, or have computed
    on several threads. A task ends by SystemExit, which leaves the blocks around this one: nothing
    of the run may be undone there.
    """

    def __enter__(self) -> "ForkServer":
        open_closed()
        hear_ends()
        self._server, calls = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._server.close()
            serve(calls)
        calls.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()  # which ends it
        os.waitpid(self.pid, 0)

    def start(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Fork:
        """Runs a script as a process of its own would.

        command: an interpreter, which is this one, the script and its arguments; environment: all
        of it.

        Raises:
            OSError: there can't be a further process.
        """
        read, write = os.pipe()
        try:
            self._server.send(Call([*command[1:]], str(cwd), {**environment}))
            send_handle(self._server, write, self.pid)
            answer = self._server.recv()
        except (EOFError, ConnectionError):
            answer = OSError("The process that starts the tasks was killed; run it again to go on.")
        finally:
            os.close(write)
        if isinstance(answer, OSError):
            os.close(read)
            raise answer
        return Fork(answer, open(read, "rb", buffering=0), self._server)


def open_closed() -> None:
    """Opens standard files that this process was started without: no pipe may get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


@contextlib.contextmanager
def forks() -> Iterator[Start]:
    """What makes tasks' processes: forks of this one, which is as a ForkServer wants it; where they
    aren't usable, commands by themselves."""
    if not USABLE:
        yield execute
        return
    with ForkServer() as server:
        yield server.start


def serve(calls: Connection) -> NoReturn:
    """Forks a task for each call, until nobody is left to call; its own process and the tasks'
    end in here."""
    os.setsid()  # a terminal's Ctrl-C is for the run
    # where a job's end is told to each of its processes, this one waits for the tasks' ends; what
    # is for a task waits until that can hear it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # who reads what the run says must not wait for this process
        os.dup2(null, number)
    os.close(null)
    gc.freeze()  # the collector would write to what is shared, and copy it thereby
    while True:
        call, output = next_call(calls)
        try:
            task = os.fork()
        except OSError as error:
            calls.send(error)
            os.close(output)
            continue
        if task == 0:
            calls.close()
            act(call, output)
        os.close(output)
        attend(task, calls)


def next_call(calls: Connection) -> tuple[Call, int]:
    """With the file that its output goes to."""
    try:
        return calls.recv(), recv_handle(calls)
    except (EOFError, OSError):
        os._exit(0)


def attend(task: int, calls: Connection) -> None:
    """Tells a task's number, and when it ends how."""
    try:
        calls.send(task)
        end = os.waitid(os.P_PID, task, os.WEXITED | os.WNOWAIT)
        assert end is not None  # it waited
        calls.send(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)
        calls.recv()
    except (EOFError, OSError):
        os._exit(0)
    os.waitpid(task, 0)


def act(call: Call, output: int) -> NoReturn:
    """The call's script in this process, to its end."""
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (unbuffered(number) for number in (1, 2))
    os.environ.clear()
    os.environ.update(call.environment)
    os.chdir(call.cwd)
    sys.argv[:] = call.words
    script = Path(call.words[0]).absolute()
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = str(script)
    try:
        for number in SIGNALS:  # whatever who started the run ignores
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        exec(compile(script.read_bytes(), script, "exec"), vars(main))
    except SystemExit:
        raise
    except BaseException as error:  # else who called this would hear of it
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    sys.exit(0)


def unbuffered(number: int) -> io.TextIOWrapper:
    """An open file as PYTHONUNBUFFERED has it."""
    raw = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)
