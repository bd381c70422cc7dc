"""The report's numbers, and its page: one file that asks for nothing."""

import json
import re
import statistics
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from animate124.files import videos
from animate124.pipeline import page, report
from animate124.pipeline.manifest import Manifest
from animate124.pipeline.places import ROOT
from animate124.pipeline.plan import make_plan
from animate124.pipeline.request import Request

import textured_morph
from browser import Tab, chromium


def log(folder, version, rows):
    path = folder / "csv_logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    lines = ["epoch,step,train/loss_rgb,train/loss_mask,train_params/lambda_rgb", *rows]
    path.write_text("\n".join(lines) + "\n")


def test_a_resumed_runs_losses_go_on_where_it_did(tmp_path):
    log(tmp_path, 0, [",9,,,", "0,9,0.5,,1000", "0,19,0.4,0.1,1000", "0,29,0.3,,1000"])
    log(tmp_path, 1, ["0,29,0.25,,1000", "0,39,0.2,,1000"])  # resumed from step 20
    assert report.curves(tmp_path)[0] == {
        "loss_rgb": [(9, 0.5), (19, 0.4), (29, 0.25), (39, 0.2)],
        "loss_mask": [(19, 0.1)],
    }


def test_the_tokens_losses_are_read(tmp_path):
    (tmp_path / "loss.csv").write_text("step,loss,learning_rate\n1,0.5,0.01\n2,0.4,0.01\n")
    assert report.curves(tmp_path)[0] == {"loss": [(1, 0.5), (2, 0.4)]}


def test_odd_cells_of_a_log_are_left_out_and_named(tmp_path):
    log(
        tmp_path, 0, ["0,9,0.5,,1000", "0,x,0.4,,", "0,19,\ufffd.3,0.1,1000", "0,29,0.2,0.1", ",,7"]
    )
    path = tmp_path / "csv_logs" / "version_0" / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"0,39,\xff\xfe,,\n0,49,0.1,,1,2,3\n")
    found, odd = report.curves(tmp_path)
    assert found == {"loss_rgb": [(9, 0.5), (29, 0.2), (49, 0.1)], "loss_mask": [(29, 0.1)]}
    assert [line.rpartition("line ")[2] for line in odd] == ["3", "4", "6", "7"]
    assert all("metrics.csv" in line for line in odd)
    path.write_text("a" * 200_000 + "\n1\n")  # longer than a cell may be
    found, odd = report.curves(tmp_path)
    assert not found and "field larger" in odd[0]


@pytest.mark.parametrize("n", [0, 1, 199, 200, 201, 1000])
def test_a_thinned_curve_keeps_its_mean_and_its_end(n):
    curve = [(step, float((7 * step) % 11)) for step in range(n)]
    thin = report.thinned(curve)
    assert len(thin) <= report.POINTS
    if n <= report.POINTS:
        assert thin == curve
    if n:
        assert thin[-1][0] == curve[-1][0]
    if n == 1000:  # stretches of equal length
        mean = statistics.fmean(value for _, value in curve)
        assert statistics.fmean(value for _, value in thin) == pytest.approx(mean)


PLAYBACK = {"frames": 60, "fps": 24, "seconds": 2.5, "loop": True, "camera": "0,10,2 90,,"}
SKELETON = {"bones": 16, "rms_error": 0.0026, "max_error": 0.0175}
PLAYBACK |= {"end_to_start": 1.5, "largest_step": 2.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A scene with a result, made by hand, and its report."""
    image = ROOT / "load" / "toy-panda" / "image.png"
    prompt = "a <b>panda</b> is dancing & nodding"
    out = tmp_path_factory.mktemp("out")
    request = Request(image, prompt, out=out, preset="toy", subject="panda")
    plan, manifest = make_plan(request), Manifest(request.folder)
    colours = [np.full((64, 64, 3), 3 * n, np.uint8) for n in range(60)]
    for task in plan.tasks:
        manifest.begin(task.name, "hash", again=False)
        manifest.add(task.name, 61.5, {"host": 1.25, "gpu": 10.5})
        for path in task.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".mp4":
                videos.write_video(path, colours)
            elif path.suffix == ".glb":
                textured_morph.write(path)
            elif path.suffix == ".png":
                cv2.imwrite(str(path), np.full((640, 1000, 3), 90, np.uint8))
            else:
                path.write_text(json.dumps(PLAYBACK) if path.suffix == ".json" else "x")
        if task.name.startswith("stage"):
            values = [f"0,{n},{100 / (n + 1)},{0.5},1000" for n in range(0, 500, 5)]
            log(task.folder, 0, values)
        manifest.finish(task.name, task.outputs, steps=task.steps, command=task.shown())
    more = request.folder / "result" / "frames #1"
    more.mkdir()
    for n in range(2):
        (more / f"{n}.ply").write_bytes(bytes(5000))
    (more.parent / "skinned.glb").write_bytes(bytes(700))
    (more.parent / "frames.json").write_text(json.dumps({"skeleton": SKELETON, "frames": []}))
    return report.write(plan, manifest)


def test_the_json_says_what_each_task_took(written):
    facts = json.loads(written.with_name("report.json").read_text())
    assert facts["seconds"] == pytest.approx(7 * 61.5)
    stage = facts["steps"][3]
    assert stage["name"] == "stage2" and stage["state"] == "done"
    assert stage["peak_memory_gb"] == {"host": 1.25, "gpu": 10.5}
    assert stage["steps"] > 0
    assert stage["losses"]["loss_rgb"]["final"] == pytest.approx(100 / 496)
    assert len(stage["losses"]["loss_mask"]["curve"]) == 100
    assert stage["checkpoint"] == "stage2/ckpts/last.ckpt"
    assert stage["config"] == "stage2/configs/parsed.yaml"
    assert "launch.py --config configs/toy/deformation-stage2.yaml" in stage["command"]
    assert facts["playback"] == PLAYBACK
    assert facts["field"] == "deformation" and facts["versions"]["torch"]
    assert set(facts["files"]) == {
        "animation.glb",
        "animation.mp4",
        "reference_view.mp4",
        "turntable.mp4",
        "contact_sheet.png",
    }


def test_the_page_holds_everything_it_shows(written):
    text = written.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    beside = sources.index("frames%20%231/")  # what else is there, for other programs
    for name in (sources.pop(beside), sources.pop(beside)):
        assert (written.parent / unquote(name)).exists()
    sources.remove("#")  # the mesh, which the player hands out
    assert len(sources) == 6 and all(source.startswith("data:") for source in sources)
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert "<b>panda" not in text and "a &lt;b&gt;panda&lt;/b&gt; is dancing &amp; nodding" in text


def test_the_page_says_how_it_plays_and_what_else_there_is(written):
    text = written.read_text()
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text[text.index("</style>") :]))
    assert "2.5 s at 24 frames a second, made to loop. From its end to its start" in said
    assert "changes by 1.5 of 255, from frame to frame by up to 2.0." in said
    assert "The camera passes 0,10,2 90,, while time runs" in said
    assert "frames #1/ (10 kB) skinned.glb (1 kB): moved by a skeleton" in said
    assert "16 bones. Its mesh is 0.3 % of the scene's size" in said and "1.8 % where" in said
    assert page.captions({**PLAYBACK, "camera": "rest"})["animation.mp4"].startswith(
        "The camera rests"
    )
    assert page.captions({**PLAYBACK, "camera": "turn"}) == page.captions(None) == page.CAPTIONS


@pytest.mark.parametrize("size", [(360, 740), (1280, 900)], ids=["phone", "desktop"])
def test_a_browser_shows_the_page(size, written):
    with chromium() as launch:
        tab = Tab(launch(), written, size)
        tab.page.wait_for_function(
            "[...document.querySelectorAll('video')].every(video => video.readyState > 1)"
        )
        assert tab.asked() == [] and tab.said == []
        ask = tab.page.evaluate
        # nothing but the tables' own boxes scrolls sideways
        assert ask("document.documentElement.scrollWidth") <= size[0]
        assert ask("[...document.images].every(image => image.naturalWidth > 0)")
        assert ask("document.querySelectorAll('video').length") == 3
        assert ask("document.querySelectorAll('svg polyline').length") == 6 * 2  # with its mean
        assert ask("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
        assert tab.page.inner_text("h1") == "a <b>panda</b> is dancing & nodding"


def test_a_run_that_broke_off_early_has_a_page(written, tmp_path):
    """A task that never ran has no time, one that failed no memory; a log had words in it."""
    facts = json.loads(written.with_name("report.json").read_text())
    facts |= {"files": [], "further_files": [], "playback": None, "skeleton": None}
    facts["steps"] = [
        {"name": "preprocess", "state": "begun", "seconds": 3.0, "steps": None},
        {"name": "token", "state": "not run", "unread": ["loss.csv, line 3"]},
    ]
    text = page.page(facts, tmp_path, [])
    assert "<td>3 s</td>" in text and "no number: loss.csv, line 3" in text
    assert "Contact sheet" not in text and "None" not in text
