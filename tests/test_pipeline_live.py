"""The viewer's process beside a run, a stand-in for the viewer in its place."""

import json
import os
from pathlib import Path

import pytest
from animate124.pipeline import command, live
from animate124.pipeline.request import parser
from animate124.system.snapshots import VARIABLE

STAND_IN = """
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[2])
assert sys.argv[1] == "view" and sys.argv[3:] == ["--follow", "--end-with-input"]
print("noise", flush=True)
print("Look at http://127.0.0.1:1", flush=True)
facts = {"nice": os.nice(0), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
(folder / "facts").write_text(json.dumps(facts))
sys.stdin.read()
(folder / "ended").touch()
"""


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A scene's folder, and what is run in the viewer's place."""
    monkeypatch.setattr(live, "ROOT", tmp_path)

    def put(script):
        (tmp_path / "animate.py").write_text(script)
        return tmp_path

    return put


def test_it_is_told_where_to_look_and_ends_with_the_block(scene, capsys):
    folder = scene(STAND_IN)
    before = os.environ.get(VARIABLE)
    with live.viewer(folder):
        assert os.environ[VARIABLE] == "1"
    assert os.environ.get(VARIABLE) == before
    assert (folder / "ended").exists()
    assert json.loads((folder / "facts").read_text())["gpus"] == ""
    said = capsys.readouterr().out
    assert "Viewer: Look at http://127.0.0.1:1" in said and "noise" not in said
    assert "animate.py view" in said
    assert (folder / "logs" / "viewer.log").read_text() == "noise\nLook at http://127.0.0.1:1\n"


def test_a_viewer_that_fails_is_a_line_and_the_run_goes_on(scene, capsys):
    with live.viewer(scene('raise SystemExit("error: port 8080 is not for you")')):
        pass
    assert "Viewer: error: port 8080 is not for you" in capsys.readouterr().out


def test_one_that_does_not_end_is_killed(scene, monkeypatch):
    monkeypatch.setattr(live, "GRACE", 0.5)
    folder = scene("import time\ntime.sleep(600)")
    with live.viewer(folder):
        pass  # `end` waits for it: no zombie is left


def test_it_is_asked_for_with_one_scene_and_with_viser_alone(tmp_path, monkeypatch, capsys):
    image = Path(live.__file__).parents[1] / "load" / "toy-panda" / "image.png"
    words = [str(image), "--prompt", "a panda is dancing", "--preset", "toy", "--viewer"]
    words += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    assert command.run(parser().parse_intermixed_args(words), words) == 1
    assert "pip install viser" in capsys.readouterr().err and not (tmp_path / "out").exists()
    words = ["--batch", str(tmp_path / "a.csv"), "--viewer"]
    assert command.run(parser().parse_intermixed_args(words), words) == 1
    assert "--viewer shows one scene" in capsys.readouterr().err
