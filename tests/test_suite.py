"""The suite: what it runs, what it keeps, and what it writes down."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from animate124.evaluation import suite, tables
from animate124.files import figures
from animate124.pipeline.request import FIELDS, GRID

OURS = "deformation"


def row(field, **more):
    return {
        **{"species": "fox", "motion": "jump", "seed": 1, "named": "jump", "motion_score": 0.9},
        **{"reference_psnr": 24.0, "novel_view_psnr": 23.0, "motion_energy_ratio": 0.8},
        **{"motion_kept": 0.95, "temporal_jitter": 0.5, "identity_drift": [0.15, 0.12]},
        **{"identity_share": 0.5, "identity_share_worst": 0.25, "sharpness": 0.75},
        **{"specks": 0.001, "seconds": {"stage1": 60.0, "stage2": 90.0}},
        **{"field": field, "device": "CPU", "commit": "abc1234", **more},
    }


def both(**more):
    """A row of each field, and another of ours that differs in some figures."""
    return [row(OURS), row(OURS, **more), row(GRID)]


def cells(text):
    """Of a table: a dictionary a line, by heading."""
    head, _, *lines = [[c.strip() for c in x.strip("| ").split(" | ")] for x in text.splitlines()]
    return [dict(zip(head, each, strict=True)) for each in lines]


def test_the_table_has_a_line_a_subject_and_a_mean_a_field():
    found = cells(tables.table(both(named="nod", identity_share=0.9, specks=0.003)))
    assert sorted(line["field"] for line in found) == [OURS] * 3 + [GRID] * 2
    found = [line for line in found if line["field"] == OURS]
    mean = found[2]
    assert mean["subject"] == "**mean**" and mean["named as"] == "1 of 2"
    assert mean["identity"] == "0.70" and mean["specks"] == "0.0020" and mean["minutes"] == "2.5"
    assert found[0]["subject"] == "fox 1, jump" and found[0]["drift, stage 2 -> 3"].endswith(
        "0.120"
    )


def test_the_ablations_column_is_there_where_all_rows_have_it():
    assert "without 3D prior" not in cells(tables.table(both()))[0]
    every = [{**each, "novel_view_psnr_without_3d_prior": 20.0} for each in both()]
    assert cells(tables.table(every))[0]["without 3D prior"] == "20.00"


def test_a_table_replaces_that_of_its_own_budget_only(tmp_path):
    path = tmp_path / "toyworld.md"
    path.write_text("# Title\n\n## Budget full\n\nold\n\n## More\n\ntext\n")
    tables.write_table(path, "full", both())
    tables.write_table(path, "laptop", both(reference_psnr=26.0))
    text = path.read_text()
    assert text.startswith("# Title\n") and "old" not in text and "## More\n\ntext\n" in text
    assert text.count("**mean**") == 4 and text.count("| 25.00 |") == 1


def test_figures_have_the_issues_keys_and_their_rows_origin(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text('{"another": 1}')
    tables.write_figures(path, "full", both(sharpness=0.25), ["--budget", "full"])
    found = json.loads(path.read_text())
    assert found.pop("another") == 1
    keys = ["identity_share", "identity_share_worst", "sharpness", "named", "motion_energy"]
    keys += ["novel_view_psnr", "reference_psnr", "minutes"]
    assert set(found) == {f"toy.full.{part}{key}" for part in ("", "grid.") for key in keys}
    assert found["toy.full.sharpness"] == {
        "value": 0.5,
        "unit": "ratio",
        "device": "CPU",
        "command": "python -m animate124.evaluation.suite --suite --budget full",
        "commit": "abc1234",
    }
    assert found["toy.full.named"]["value"] == 2 and found["toy.full.grid.minutes"]["value"] == 2.5


def test_figures_of_a_copy_without_history_say_the_commit_that_they_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("COMMIT", "1234567")
    figures.record({"a": (1 / 3, "s")}, "python x.py", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())["a"]
    assert found["commit"] == "1234567" and found["value"] == 0.3333
    assert found["device"] == figures.device_name()


@pytest.fixture
def commands(monkeypatch):
    """What a suite starts; each process answers with its number."""
    asked = []

    def run(command, **_):
        asked.append(command)
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"species": folder.name, "call": len(asked)})
        return subprocess.CompletedProcess(command, 0, f"a line before\n{line}\n")

    monkeypatch.setattr(suite.subprocess, "run", run)
    return asked


def test_a_suite_goes_on_from_what_the_same_words_have_done(tmp_path, commands):
    first = suite.run_suite(1, ["--budget", "full"], FIELDS, tmp_path)
    assert [row["call"] for row in first] == list(range(1, 17))
    again = suite.run_suite(2, ["--budget", "full"], FIELDS, tmp_path)
    assert again == first and len(commands) == 16
    assert suite.run_suite(1, ["--budget", "full"], FIELDS[1:], tmp_path) == first[8:]
    suite.run_suite(1, ["--budget", "laptop"], [GRID], tmp_path)
    assert len(commands) == 24  # figures of another budget don't count


def test_each_field_has_a_folder_and_its_processes_are_told_it(tmp_path, commands):
    suite.run_suite(1, ["--cpu"], FIELDS, tmp_path)
    for command, field in zip(commands, [f for f in FIELDS for _ in range(8)], strict=True):
        args = suite.parser().parse_args(command[3:])
        assert args.field == field and args.cpu and args.out.parent == tmp_path / field


def test_on_one_core_no_gpu_is_seen(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", *suite.THREADS):
        monkeypatch.setenv(name, "0")
    before, forked = torch.get_num_threads(), []
    monkeypatch.setattr(
        os, "register_at_fork", lambda after_in_child: forked.append(after_in_child)
    )
    try:
        suite.one_core()
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        forked[0]()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert {os.environ[name] for name in suite.THREADS} == {"1"}


def test_a_task_that_ends_has_nothing_of_the_runs_to_undo(tmp_path, monkeypatch):
    """A fork that is one leaves by SystemExit where it was made."""
    monkeypatch.setattr(suite.tempfile, "tempdir", str(tmp_path))
    seen = []

    @contextlib.contextmanager
    def forks():
        seen.append(list(tmp_path.iterdir()))
        sys.exit(0)
        yield

    monkeypatch.setattr(suite, "forks", forks)
    with pytest.raises(SystemExit):
        suite.main(["--species", "fox"])
    assert seen == [[]]


def test_one_that_fails_doesnt_stop_the_others(tmp_path, monkeypatch, commands):
    run = suite.subprocess.run

    def failing(command, **more):
        if "fox" in command:
            raise subprocess.CalledProcessError(1, command)
        return run(command, **more)

    monkeypatch.setattr(suite.subprocess, "run", failing)
    with pytest.raises(subprocess.CalledProcessError):
        suite.run_suite(1, [], [GRID], tmp_path)
    assert len(list(tmp_path.glob("grid/*/figures.json"))) == 7


def test_ctrl_c_starts_no_further_subjects(tmp_path, monkeypatch, commands):
    run = suite.subprocess.run

    def slow(command, **more):
        time.sleep(0.1)
        return run(command, **more)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite.subprocess, "run", slow)
    monkeypatch.setattr(suite, "tqdm", stopped)
    with pytest.raises(KeyboardInterrupt):
        suite.run_suite(1, [], FIELDS, tmp_path)
    assert len(commands) < 4


def test_a_copy_without_history_is_told_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setattr(figures, "FIGURES", tmp_path / "benchmarks" / "figures.json")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RuntimeError, match=r"no history that git could read.* COMMIT=4214c66"):
        figures.commit()
    monkeypatch.setenv("COMMIT", "abc1234")
    assert figures.commit() == "abc1234"
