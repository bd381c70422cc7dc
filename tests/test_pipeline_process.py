"""Children: their output, memory, and how Ctrl-C reaches them."""

import os
import signal
import subprocess
import sys

import pytest
from animate124.pipeline import process
from animate124.pipeline.process import Interrupt, run

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


def child(code, tmp_path, interrupt, on_line=lambda text: None):
    """Runs Python code as a step would be."""
    command = [sys.executable, "-c", code]
    log = tmp_path / "log" / "step.log"
    return run(command, tmp_path, {"MARK": "7"}, log, interrupt, on_line, tick=lambda: None)


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
    assert seen == ["one 7", "bar 1", "  bar 2", "end"]
    log = (tmp_path / "log" / "step.log").read_text()
    assert log.endswith("one 7\nbar 1\n  bar 2\nend\n") and log.startswith("$ ")


def test_peak_memory_is_the_childs(tmp_path):
    pause = "print(1, flush=True); import time; time.sleep(0.1); print(2)"
    fill = "x = bytearray(300_000_000); x[::4096] = x[::4096]; del x;"
    big, small = (child(code + pause, tmp_path, Interrupt()) for code in (fill, ""))
    assert 0.3 < big.peak_memory["host"] < 0.6
    assert small.peak_memory["host"] < 0.1
    said = child("print('Peak GPU memory: 12.50 GB')", tmp_path, Interrupt())
    assert said.peak_memory["gpu"] == 12.5
    said = child("print('9 images/s, at most 10.0 GiB')", tmp_path, Interrupt())
    assert said.peak_memory["gpu"] == pytest.approx(10.737, abs=1e-3)


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_job_or_terminal_is_a_ctrl_c(number, tmp_path):
    script = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("process", {process.__file__!r})
process = sys.modules["process"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(process)
Interrupt, run = process.Interrupt, process.run
code = {CAREFUL.format(least=1)!r}
with Interrupt() as interrupt:
    out = run([sys.executable, "-c", code], Path("."), {{}}, Path("log"), interrupt,
              lambda text: print(text, flush=True), lambda: None)
print("code", out.code, flush=True)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(number)
    assert parent.stdout.read() == "asked 1\ncode 41\n"
    assert parent.wait() == 0


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
