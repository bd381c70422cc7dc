"""The tables of values: what means nothing is refused by --dry-run in one line that names it, what
means something is taken. In a process of its own, as a person has it: the tests' own checks of
types would be there first."""

import subprocess
import sys
from pathlib import Path

import values


def test_every_sixth_row_of_the_tables_gets_the_right_answer():
    ran = subprocess.run(
        [sys.executable, values.__file__, "6"], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_dry_run_writes_nothing():
    with values.desk() as desk:
        before = sorted(desk.rglob("*"))
        assert values.dry_run("ball.png", "--prompt", values.PROMPT).code == 0
        assert values.dry_run("ball.png", "--prompt", values.PROMPT, "result.size=x").code == 1
        assert sorted(Path.cwd().rglob("*")) == before
