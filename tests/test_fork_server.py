"""Tasks as forks: each is what an executed one would be, and knows nothing of the others."""

import os
import signal
import subprocess
import sys

import pytest
from animate124.files.whole import running
from animate124.pipeline.places import ROOT

from test_pipeline_process import CAREFUL, parent_of, wait_until, where_usable

pytestmark = where_usable


def said(*codes, folder, forked=True):
    """What tasks with these codes print, and how they end."""
    parent = parent_of(*codes, folder=folder, forked=forked)
    lines = parent.communicate(timeout=60)[0].splitlines()
    assert parent.returncode == 0
    return lines


STATE = """
import multiprocessing, os, sys, time
import __main__
print(sys.argv[1:], os.getcwd(), os.environ["MARK"], __name__, os.path.basename(__file__))
print(os.getpgid(0) == os.getpid() == os.getsid(0), os.read(0, 1), os.isatty(1))
print(sys.stdout.write_through, sys.stderr.write_through, __main__.__spec__)
print(os.environ.get("LEFT"), "shelve" in sys.modules, sorted(os.listdir("/proc/self/fd"))[:-1])
os.environ["LEFT"] = "something"
import shelve
multiprocessing.set_start_method("spawn")
os.chdir("/")
"""


def test_a_fork_is_as_an_executed_task_and_leaves_nothing_to_the_next(tmp_path):
    executed, forked = (said(STATE, STATE, folder=tmp_path, forked=f) for f in (False, True))
    assert executed == forked
    assert len(executed) == 10 and executed[1:5] == executed[6:]


def test_ends_are_as_an_executed_tasks(tmp_path):
    codes = [
        "import sys; sys.exit(3)",
        "raise SystemExit('a word')",
        "import atexit; atexit.register(print, 'at the end')",
        "import os; os.kill(os.getpid(), 9)",
        "x = {}\nx['a']",
        "1 +",
    ]
    executed, forked = (said(*codes, folder=tmp_path, forked=f) for f in (False, True))
    ends = ["code 3", "a word", "code 1", "at the end", "code 0", "code -9"]
    assert forked[:6] == executed[:6] == ends
    assert forked.count("KeyError: 'a'") == executed.count("KeyError: 'a'") == 1
    assert executed[-1] == forked[-1] == "code 1"
    assert [line.startswith("SyntaxError") for line in forked].count(True) == 1


def test_a_second_ctrl_c_kills(tmp_path):
    parent = parent_of(CAREFUL.format(least=2), folder=tmp_path, forked=True)
    for line in ("ready", "asked 1"):
        assert parent.stdout.readline().strip() == line
        parent.send_signal(signal.SIGINT)
    assert parent.communicate()[0] == f"code {-signal.SIGKILL}\n"


def test_the_servers_end_is_the_tasks_and_the_runs(tmp_path):
    code = "import os, time; print(os.getppid(), os.getpid(), flush=True); time.sleep(60)"
    parent = parent_of(code, code, folder=tmp_path, forked=True)
    server, task = map(int, parent.stdout.readline().split())
    os.kill(server, signal.SIGKILL)
    assert parent.stdout.readline() == f"code {-signal.SIGKILL}\n"
    wait_until(lambda: not running(task))
    assert parent.communicate()[0] == "" and parent.returncode == 1  # the next one can't start


def test_a_server_that_is_gone_is_told_as_that():
    script = f"""
import os, signal, sys, types
package = sys.modules["animate124"] = types.ModuleType("animate124")
package.__path__ = [{str(ROOT)!r}]
from animate124.pipeline.fork_server import ForkServer
with ForkServer() as server:
    os.kill(server.pid, signal.SIGKILL)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    server.start([sys.executable, "script.py"], "/", {{}})
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("OSError: The process that starts the tasks was killed; run it again")


def test_a_jobs_end_that_is_told_to_each_process_leaves_the_server_to_its_tasks(tmp_path):
    code = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); print('on')"
    assert said(code, code, folder=tmp_path) == ["on", "code 0"] * 2


FILES = "import os, sys; print(os.read(0, 1)); os.system('echo its own'); sys.stderr.write('error')"


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-", ">&-"])
def test_a_run_without_standard_files_has_tasks_with_theirs(closed, tmp_path):
    parent = parent_of(FILES, folder=tmp_path, forked=True, shell=f'exec "$@" {closed}')
    parent.communicate(timeout=60)
    said = (tmp_path / "log").read_text().splitlines()[1:]
    assert parent.returncode == 0 and sorted(said) == ["b''", "error", "its own"]


def test_no_server_outlives_its_run(tmp_path):
    parent = parent_of("import os; print(os.getppid())", folder=tmp_path, forked=True)
    server = int(parent.stdout.readline())
    parent.communicate()
    assert not running(server)


DOOR = """
import os, sys
from pathlib import Path
sys.argv = ["animate.py", "load/toy-panda/image.png", "--prompt", "x", "--preset", "toy"]
def fork():
    from huggingface_hub import constants
    files = map(os.path.realpath, Path("/proc/self/fd").iterdir())
    print(len(os.listdir("/proc/self/task")), [file for file in files if "nvidia" in file])
    print(constants.HF_HUB_OFFLINE)
    sys.exit(5)
os.fork = fork
import animate
animate.main()
"""


def test_animate_py_forks_before_it_asks_for_a_gpu_or_starts_a_thread():
    """What a fork can't have: CUDA doesn't work in it, and threads that aren't there are waited
    for. The libraries know by then whether the hub may be asked."""
    quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy ends its own before each fork
    quiet.pop("HF_HUB_OFFLINE", None)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{DOOR}"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert run.returncode == 5, run.stderr
    assert run.stdout.splitlines() == ["1 []", "True"]
