"""The tables of values: what means nothing is refused by --dry-run in one line, what means
something is taken. `python tests/faults/values.py` shows the same as a list."""

from pathlib import Path

import pytest
import values


@pytest.fixture(scope="module", autouse=True)
def desk():
    with values.desk() as folder:
        yield folder


def groups(name):
    """Rows of a table by their group."""
    found = {}
    for row in values.rows(name):
        found.setdefault(row.group, []).append(row)
    return [pytest.param(rows, id=group) for group, rows in found.items()]


@pytest.mark.parametrize("rows", groups("sensible.txt"))
def test_what_means_something_is_taken(rows):
    answers = [(str(row), values.answer(row)) for row in rows]
    wrong = [f"{row}\n    {got.said.strip()}" for row, got in answers if got.code != 0]
    assert not wrong, "\n".join(wrong)


def test_a_dry_run_writes_nothing(desk):
    before = sorted(desk.rglob("*"))
    assert values.dry_run("ball.png", "--prompt", values.PROMPT).code == 0
    assert values.dry_run("ball.png", "--prompt", values.PROMPT, "result.size=x").code in (0, 1)
    assert sorted(Path.cwd().rglob("*")) == before
