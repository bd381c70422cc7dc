"""Benchmarks of whole runs: what they hear of a run, what they reckon, and what they ask for."""

import math
from pathlib import Path

import pytest
from animate124.pipeline.command import request_of
from animate124.pipeline.plan import make_plan
from animate124.pipeline.request import parser

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STAND_IN = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1]) / "toy-panda-a_panda_is_dancing"
(out / "logs").mkdir(parents=True)
steps = {}
for name, training in (("preprocess", 0), ("stage1", 4)):
    (out / "logs" / f"{name}.log").write_text("")
    with open(out / "logs" / f"{name}.events.jsonl", "w") as file:
        for done in range(training + 1):
            time.sleep(0.3)
            told = {"event": "progress", "done": done, "total": 4, "of": "training"}
            print(json.dumps(told), file=file, flush=True)
    steps[name] = {"seconds": 7.0, "peak_memory": {"host": 0.5}}
(out / "manifest.json").write_text(json.dumps({"steps": steps}))
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_a_run_is_heard_as_it_comes(benchmarks, tmp_path):
    from runs import run

    (tmp_path / "animate.py").write_text(STAND_IN)
    heard = run(tmp_path, tmp_path / "out", ["--preset=toy"])
    assert [*heard.tasks] == ["preprocess", "stage1"] and [*heard.trained] == ["stage1"]
    stage = heard.trained["stage1"]
    assert stage.to_first_step == heard.start_s == pytest.approx(0.6, abs=0.25)
    assert stage.step_s == pytest.approx(0.3, abs=0.15)
    assert 1.8 < heard.seconds < 5 and heard.to_first_step == pytest.approx(0.9, abs=0.4)
    assert stage.seconds == 7 and stage.peak == {"host": 0.5}


def test_runs_that_are_done_are_kept(benchmarks, tmp_path, monkeypatch):
    import runs

    made, kept = [], tmp_path / "kept.json"

    def run(checkout, out, words):
        if len(made) == 1:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append((checkout, *words))
        timed = runs.Timed(began=1, steps=[(2.0, 1), (3.0, 5)], seconds=7, peak={"gpu": 0.5})
        return runs.Run(9.0, {"stage1": timed})

    monkeypatch.setattr(runs, "run", run)
    asked = (tmp_path, tmp_path, ["a"], 1, ["--vram", "12"], kept)
    with pytest.raises(KeyboardInterrupt):
        runs.in_turn(*asked)
    ours, theirs = runs.in_turn(*asked)
    assert made == [(runs.ROOT, "--vram", "12", "a"), "stopped", (tmp_path, "a")]
    assert ours == theirs and ours[0].tasks["stage1"].step_s == 0.25
    assert runs.in_turn(*asked) == (ours, theirs) and len(made) == 3
    runs.in_turn(tmp_path, tmp_path, ["b"], 1, [], kept)  # other words are other runs
    assert len(made) == 5


def test_another_checkout_is_looked_for_before_anything_runs(benchmarks, tmp_path, capsys):
    from runs import options

    (tmp_path / "animate.py").touch()
    assert options("").parse_args(["--beside", str(tmp_path)]).beside == tmp_path
    with pytest.raises(SystemExit):
        options("").parse_args(["--beside", str(tmp_path / "gone")])
    assert "gone has no animate.py: a checkout of this project" in capsys.readouterr().err


def test_a_run_that_is_interrupted_is_waited_for(benchmarks, tmp_path, monkeypatch):
    import runs

    (tmp_path / "animate.py").write_text("import time; time.sleep(1); open('saved', 'w')")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "listen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.run(tmp_path, tmp_path / "out", [])
    assert (tmp_path / "saved").exists()


def test_a_run_that_fails_says_which(benchmarks, tmp_path):
    from runs import run

    (tmp_path / "animate.py").write_text("raise SystemExit(7)")
    with pytest.raises(SystemExit, match=rf"{tmp_path} failed \(7\), see above"):
        run(tmp_path, tmp_path / "out", [])


def test_steps_that_did_not_run_are_reckoned_at_the_later_ones_length(benchmarks):
    from runs import Run, Timed
    from whole import reckoned, unknown

    steps = [(15.0, 1), (16.0, 2), (18.0, 6), (20.0, 10)]  # the first one takes long
    stage = Timed(began=3, steps=steps)
    once = Timed(began=30, steps=[(32.0, 4)])  # its start is in it
    run = Run(40.0, {"preprocess": Timed(began=0), "stage1": stage, "token": once})
    assert stage.step_s == 0.5
    assert reckoned(run, {"stage1": 110, "token": 4}) == 40 + 50
    assert math.isnan(once.step_s) and unknown(run) == ["token"]
    assert reckoned(run, {"stage1": 10, "token": 24}) == 40  # at least


def test_a_recording_among_the_later_steps_is_no_step(benchmarks):
    from runs import Timed

    steps = [(2.0, 1), (3.0, 5), (3.5, 10), (4.1, 11), (4.6, 16), (5.0, 20)]
    assert Timed(began=1, steps=steps).step_s == pytest.approx(1.4 / 14)


def test_the_whole_asks_for_no_model_but_its_own(benchmarks, tmp_path):
    from whole import ROOT, steps_of, words

    for name in ("sd", "zero123", "text-to-video", "controlnet-tile"):
        (tmp_path / name).mkdir()
    given = words(tmp_path, steps_of(0.01), tiny=False)
    image = str(ROOT / "load" / "toy-panda" / "image.png")
    asked = parser().parse_intermixed_args([image, "--prompt", "a panda is dancing", *given])
    tasks = {task.name: task for task in make_plan(request_of(asked)).tasks}
    models = {model for task in tasks.values() for model in task.models}
    named = {word.partition("=")[2] for task in tasks.values() for word in task.words()}
    assert all(Path(model).parent == tmp_path for model in models), models
    assert {str(tmp_path / name) for name in ("sd", "zero123", "text-to-video")} <= named
    assert not [word for word in named if word.startswith(("damo", "bennyguo", "lllyasviel"))]
    assert (tasks["token"].steps, tasks["stage1"].steps, tasks["stage3"].steps) == (10, 30, 12)
