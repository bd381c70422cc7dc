"""Children: their output, memory, and how Ctrl-C reaches them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from animate124.events import Message, Progress
from animate124.files.whole import running
from animate124.pipeline import process, watcher
from animate124.pipeline.fork_server import USABLE
from animate124.pipeline.process import Interrupt, run

ROOT = Path(process.__file__).parents[1]

CAREFUL = """
import signal, sys, time
asked = 0
def stop(*_):
    global asked
    asked += 1
    print("asked", asked, flush=True)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
while asked < {least}:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(40 + asked)
"""


def child(code, tmp_path, interrupt, on_line=lambda text: None, **more):
    """Runs Python code as a step would be."""
    command = [sys.executable, "-c", code]
    log = tmp_path / "log" / "step.log"
    return run(command, tmp_path, {"MARK": "7"}, log, interrupt, on_line, lambda: None, **more)


def press(times):
    """An on_line that sends Ctrl-C to ourselves once the child is ready, then on its words."""
    left = [times]

    def on_line(text):
        if left[0] and text.startswith(("ready", "asked")):
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)

    return on_line


def test_lines_come_one_by_one_and_go_into_the_log(tmp_path):
    seen = []
    code = "import os, sys; print('one', os.environ['MARK']); "
    code += "sys.stderr.write('bar 1\\r  \\x1b[Abar 2\\rend')"
    outcome = child(code, tmp_path, Interrupt(), seen.append)
    assert outcome.code == 0
    assert seen == ["one 7", "end"]  # a bar's states don't stay
    log = (tmp_path / "log" / "step.log").read_text()
    assert log.endswith("one 7\nbar 1\n  bar 2\nend\n") and log.startswith("$ ")


def test_peak_memory_is_the_childs(tmp_path):
    pause = "print(1, flush=True); import time; time.sleep(0.5); print(2)"
    fill = "x = bytearray(300_000_000); x[::4096] = x[::4096]; del x;"
    big, small = (child(code + pause, tmp_path, Interrupt()) for code in (fill, ""))
    assert 0.3 < big.peak_memory["host"] < 0.6
    assert small.peak_memory["host"] < 0.1


TELLS = f"""
import sys
sys.path.insert(0, {str(ROOT / "host")!r})
from threestudio.utils import events
events.peak_memory(12_500_000_000)
events.peak_memory(7_000_000_000)  # another process of it
events.say("hello")
events.progress(3, 3)
"""


def test_what_a_child_tells_is_heard(tmp_path):
    for _ in range(2):  # each run's own
        heard = []
        outcome = child(TELLS, tmp_path, Interrupt(), on_event=heard.append)
        assert outcome.peak_memory["gpu"] == 12.5
        assert heard == [Message("hello"), Progress(3, 3)]


def test_ctrl_c_reaches_the_child_once(tmp_path):
    with Interrupt() as interrupt:
        outcome = child(CAREFUL.format(least=1), tmp_path, interrupt, press(1))
    assert interrupt.asked
    assert outcome.code == 41


def test_a_second_ctrl_c_kills(tmp_path):
    with Interrupt() as interrupt:
        outcome = child(CAREFUL.format(least=2), tmp_path, interrupt, press(2))
    assert outcome.code == -signal.SIGKILL


def test_a_terminals_ctrl_c_isnt_doubled(tmp_path):
    """The child is in no terminal's foreground group: only we pass the signal on."""
    code = "import os; print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid())"
    seen = []
    child(code, tmp_path, Interrupt(), seen.append)
    assert seen == ["True True"]


def parent_of(*codes, folder, forked=False, shell='exec "$@"'):
    """A process that runs a child with each code in turn, as a run does its tasks, and says how
    they ended. The file `noted` has the numbers that a lock would be told. shell: starts it."""
    scripts = [folder / f"task{n}.py" for n in range(len(codes))]
    for file, code in zip(scripts, codes, strict=True):
        file.write_text(code)
    script = f"""
import contextlib, sys, types
package = sys.modules["animate124"] = types.ModuleType("animate124")  # without what it registers
package.__path__ = [{str(ROOT)!r}]
from pathlib import Path
from animate124.pipeline.fork_server import ForkServer
from animate124.pipeline.process import Interrupt, execute, run
server = ForkServer() if {forked} else contextlib.nullcontext()
with server as forks, Interrupt() as interrupt:
    for file in {[str(file) for file in scripts]}:
        out = run([sys.executable, file, "a b"], Path("/tmp"), {{"MARK": "7"}},
                  Path("log").absolute(), interrupt,
                  lambda text: print(text, flush=True), lambda: None,
                  lambda *pids: Path("noted").write_text(" ".join(map(str, pids))),
                  start=forks.start if forks else execute)
        print("code", out.code, flush=True)
"""
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


where_usable = pytest.mark.skipif(not USABLE, reason="forks are for Linux")
either_way = pytest.mark.parametrize("forked", [False, pytest.param(True, marks=where_usable)])


def wait_until(true, seconds=10):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@either_way
def test_a_child_ends_with_its_killed_parent_and_the_lock_knows_both_processes(forked, tmp_path):
    code = "import os; print(os.getpid(), flush=True)" + CAREFUL.format(least=1)
    parent = parent_of(code, folder=tmp_path, forked=forked)
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    step, guard = map(int, (tmp_path / "noted").read_text().split())
    parent.kill()
    parent.wait()
    log = tmp_path / "log"
    wait_until(lambda: "asked 1\n" in log.read_text())  # a Ctrl-C; its words still come to the log
    assert step == pid and running(step) and running(guard)  # it takes 0.2 s to stop
    wait_until(lambda: not running(step) and not running(guard))
    parent.stdout.close()


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""


def test_who_does_not_stop_is_killed_with_what_it_started(tmp_path):
    code = FAMILY + "time.sleep(60)"
    leader = process.execute([sys.executable, "-c", code], tmp_path, os.environ)
    grandchild = int(leader.stdout.readline())
    watcher.end(leader.pid, leader.stdout.fileno(), tmp_path / "log", grace=0.2)
    assert leader.wait() == -signal.SIGKILL
    wait_until(lambda: not running(grandchild))
    leader.stdout.close()


def test_what_a_process_started_does_not_outlive_it_for_long(tmp_path, monkeypatch):
    """As a rank of DDP would whose rank zero was killed."""
    monkeypatch.setattr(process, "LINGER", 0.2)
    seen = []
    outcome = child(FAMILY + "os.kill(os.getpid(), 9)", tmp_path, Interrupt(), seen.append)
    assert outcome.code == -signal.SIGKILL and outcome.seconds < 10
    wait_until(lambda: not running(int(seen[0])))


def test_a_closed_pipe_stops_the_child_as_ctrl_c_does(tmp_path):
    def on_line(text):
        if text == "ready":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        child(CAREFUL.format(least=1), tmp_path, Interrupt(), on_line)
    assert (tmp_path / "log" / "step.log").read_text().endswith("asked 1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_log(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        run([sys.executable, "-c", ""], tmp_path, {}, Path("/dev/full"), Interrupt(), print, print)


def test_a_child_that_missed_ctrl_c_is_told(tmp_path):
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        outcome = child("import time; time.sleep(60)", tmp_path, interrupt)
    assert outcome.code in (1, -signal.SIGINT)


@either_way
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_job_or_terminal_is_a_ctrl_c(number, forked, tmp_path):
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        parent = parent_of(CAREFUL.format(least=1), folder=tmp_path, forked=forked)
    finally:
        signal.signal(number, before)
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(number)
    assert parent.stdout.read() == "asked 1\ncode 41\n"
    assert parent.wait() == 0


@either_way
def test_whoever_starts_a_run_may_ignore_signals(forked, tmp_path):
    """`nohup` does, a shell's `&` in a script, and some supervisors, who lose children's ends."""
    asleep = "import time; print('ready', flush=True); time.sleep(60)"
    shell = """trap '' CHLD INT HUP; exec "$@" """
    parent = parent_of("exit(3)", asleep, folder=tmp_path, forked=forked, shell=shell)
    assert [parent.stdout.readline() for _ in range(2)] == ["code 3\n", "ready\n"]
    parent.send_signal(signal.SIGHUP)  # which nohup is there for: it is no Ctrl-C
    parent.send_signal(signal.SIGTERM)  # the first one: nothing is killed
    end = parent.communicate(timeout=30)[0].splitlines()[-1]
    assert end == f"code {1 if forked else -signal.SIGINT}"


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
