"""The viewer beside a run (`--viewer`): a process of its own, so that a run can neither fail nor
wait for it. It draws on one CPU core, with less right to it than the tasks have, and takes no GPU's
memory away; the stages write snapshots for it (system/snapshots.py)."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from ..system.snapshots import VARIABLE
from .places import ROOT, shown

ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
NICENESS = 10
GRACE = 5.0  # seconds that it has to end


def check_viewer() -> None:
    """A ValueError where viser is missing."""
    if find_spec("viser") is None:
        raise ValueError("The viewer needs viser: `pip install viser`, or the extra `view`.")


@contextlib.contextmanager
def viewer(folder: Path) -> Iterator[None]:
    """One of a scene's folder as long as the block lasts; meanwhile stages write snapshots."""
    log = folder / "logs" / "viewer.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["view", str(folder.absolute()), "--follow", "--end-with-input"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "animate.py"), *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the run
    )
    if os.name == "posix":
        psutil.Process(process.pid).nice(NICENESS)
    reader = threading.Thread(target=pass_on, args=(process, log), daemon=True)
    reader.start()
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        end(process)
        reader.join(GRACE)
        print(f"To look again: python animate.py view {shown(folder)}", flush=True)


def pass_on(process: subprocess.Popen, log: Path) -> None:
    """What it prints goes into the log, and its address or an error to the person."""
    assert process.stdout is not None  # it is a pipe
    with contextlib.suppress(OSError), log.open("w", encoding="utf-8") as file:  # a full disk
        for line in process.stdout:
            file.write(line)
            if line.startswith(("Look at", "error:")):
                print(f"Viewer: {line.strip()}", flush=True)


def end(process: subprocess.Popen) -> None:
    assert process.stdin is not None  # it is a pipe
    process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
