"""What a process tells the one that started it."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import threestudio
from animate124 import events, host
from animate124.events import Message, PeakMemory, Progress, Reader

HOST = Path(host.__file__).parent


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The reader of what this process tells."""
    path = tmp_path / "step.events.jsonl"
    monkeypatch.setenv(events.VARIABLE, str(path))
    return Reader(path)


def test_events_come_as_they_were_told(told, capsys):
    assert told.new() == []  # nothing is there yet
    events.progress(0, 10)
    events.peak_memory(2_500_000_000)
    events.message("  two\nlines \udcff", "warning")
    assert told.new() == [
        Progress(0, 10, "training"),
        PeakMemory(2.5),
        Message("two\nlines \udcff", "warning"),
    ]
    events.say("hello")
    events.say_error(ValueError("no"))
    assert told.new() == [Message("hello"), Message("no", "error")]
    assert told.new() == []
    assert capsys.readouterr() == ("hello\n", "error: no\n")


def test_progress_is_told_now_and_then_but_first_and_last_always(told):
    for done in range(1001):
        events.progress(done, 1000)
    for done in range(3):
        events.progress(done + 1, 3, "test")
    found = told.new()
    training = [event.done for event in found if event.of == "training"]
    assert training[0] == 0 and training[-1] == 1000 and len(training) < 20
    assert [event.done for event in found if event.of == "test"] == [1, 3]


def test_where_nobody_reads_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(events.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    shown = warnings.showwarning
    events.tell_messages()
    events.progress(1, 2)
    events.message("hello")
    assert warnings.showwarning is shown and list(tmp_path.iterdir()) == []


def test_half_a_line_waits_for_its_end_and_what_is_no_event_is_passed_over(told):
    line = json.dumps({"event": "progress", "done": 1, "total": 2}).encode()
    told.path.write_bytes(line[:20])
    assert told.new() == []
    with told.path.open("ab") as file:
        file.write(line[20:] + b'\n{"event": "progr\n7\n[]\n\xff\n{"event": "new", "x": 1}\n')
        file.write(b'{"event": "progress", "done": 2}\n{"event": "message", "text": "end"}\n')
    assert told.new() == [Progress(1, 2), Message("end")]


def test_a_file_that_cant_be_written_ends_no_task(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "gone" / "events"))
    for done in range(3):
        events.progress(done, 3)
    assert capsys.readouterr().err.count("No events are written") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_ends_no_task(monkeypatch, capsys):
    monkeypatch.setenv(events.VARIABLE, "/dev/full")
    events.message("hello")
    events.message("hello")
    assert capsys.readouterr().err.count("No space left") == 1


def test_warnings_and_the_hosts_messages_are_told_and_shown(told, capsys):
    code = """
import warnings
import threestudio
from threestudio.utils import events
events.tell_messages()
warnings.warn("by Python")
threestudio.warn("by the host")
threestudio.info("below the logger's level")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=HOST, capture_output=True, text=True, check=True
    )
    assert told.new() == [Message("by Python", "warning"), Message("by the host", "warning")]
    assert "by Python" in ran.stderr and "by the host" in ran.stderr


def test_an_aside_is_not_told(told, monkeypatch):
    from threestudio import log

    before = list(log.logger.handlers)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    try:
        log.configure(verbose=False)
        events.tell_messages()
        threestudio.info("to all")
        log.aside("to whoever typed the command")
    finally:
        log.logger.handlers[:] = before
    assert told.new() == [Message("to all")]


def test_no_library_is_loaded():
    """So that a script's --help answers at once, and a photo is cut out without torch."""
    code = f"""
import sys, types
package = sys.modules["animate124"] = types.ModuleType("animate124")  # as preprocess has it
package.__path__ = [{str(HOST.parent)!r}]
import animate124.events
print({{'torch', 'numpy', 'tqdm', 'omegaconf', 'threestudio'}} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_a_host_without_events_is_given_the_bundled_ones(monkeypatch):
    monkeypatch.setitem(sys.modules, "threestudio.utils.events", None)  # importing it fails
    found = host.utility("events")
    assert found is not events._events
    assert found.parse(b'{"event": "message", "text": "hello"}').text == "hello"
