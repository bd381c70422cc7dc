"""The page of a batch: a row a scene, with the pictures and videos that lie in its folder."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from animate124.files import videos
from animate124.pipeline import comparison
from animate124.pipeline.request import Request

from browser import Tab, chromium

EVIL = "<img src=x onerror='hurt = 1'></h2></script><script>hurt = 1</script> {{7*7}}"
FACTS = {
    "seconds": 200.0,
    "preset": "toy",
    "field": "deformation",
    "steps": [
        {"name": "stage1", "steps": 300, "peak_memory_gb": {"host": 1.04, "gpu": 9.5}},
        {"name": "stage2", "steps": 200, "peak_memory_gb": {"host": 0.5}},
        {"name": "stage3", "state": "not run"},
        {"name": "result", "steps": None, "peak_memory_gb": {}},
    ],
}


def finished(request):
    """A scene's folder as a run leaves it, as far as the page looks at it."""
    result = request.folder / "result"
    result.mkdir(parents=True)
    (request.folder / "input").mkdir()
    cv2.imwrite(str(request.folder / "input" / "_rgba.png"), np.full((32, 32, 4), 90, np.uint8))
    cv2.imwrite(str(result / "contact_sheet.png"), np.full((60, 100, 3), 90, np.uint8))
    videos.write_video(result / "reference_view.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 16)
    (result / "animation.glb").write_bytes(bytes(12_000))
    (result / "report.html").write_text("<title>its report</title>")
    (result / "report.json").write_text(json.dumps(FACTS))


@pytest.fixture
def page(tmp_path):
    """Of a scene that is done, with odd names, one that failed early and three that wait."""
    out = tmp_path / "out # 100%?"
    (tmp_path / "image.png").write_bytes(b"not read")
    prompts = [EVIL, "a cat is waving", *(f"a dog does {n}" for n in range(3))]
    requests = [Request(tmp_path / "d'og.png", prompt, out=out) for prompt in prompts]
    finished(requests[0])
    scenes = {r.name: comparison.Scene(r, out / "batch" / f"{r.name}.log") for r in requests}
    made = comparison.Comparison(out / "batch" / "scenes.html", scenes)
    made.note({requests[0].name: "done", requests[1].name: "failed (exit code 5)"})
    scenes[requests[1].name].log.write_text("what it said")
    made.note({requests[2].name: comparison.RUNS})
    return made


def links(path):
    """Where a page's links and pictures lead, as paths."""
    found = re.findall(r'(?:src|href)="([^"]*)"', path.read_text(encoding="utf-8"))
    return [path.parent / unquote(link) for link in found if not link.startswith("data:")]


def test_a_row_has_what_is_there_and_stays_whole_when_all_is_moved(page):
    text = page.path.read_text(encoding="utf-8")
    assert re.findall(r"<dd>([^<]*)", text) == [
        *("3 min 20 s", "500", "1.0 GB", "9.5 GB", "toy", "deformation", "12 kB")
    ]
    assert "1 done,\n1 failed,\n1 runs,\n2 waits," in text and 'http-equiv="refresh"' in text
    names = ["_rgba.png", "report.html", "reference_view.mp4", "contact_sheet.png"]
    leads = links(page.path)
    assert {path.name for path in leads[:5]} == set(names) and leads[5].suffix == ".log"
    assert len(leads) == 6 and all(path.is_file() for path in leads)
    moved = page.path.parents[1].rename(page.path.parents[2] / "elsewhere")
    assert all(path.is_file() for path in links(moved / "batch" / "scenes.html"))


def test_it_ends_when_all_scenes_have(page):
    page.note(dict.fromkeys(page.scenes, "done"))
    assert "refresh" not in page.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": 3, "seconds": "x"}', "\0"])
def test_a_report_of_another_kind_is_left_out(text, page):
    result = next(iter(page.scenes.values())).request.folder / "result"
    (result / "report.json").write_text(text)
    page.note({})
    assert "<dd>" not in page.path.read_text(encoding="utf-8")


def test_a_page_that_cant_be_written_is_a_line(page, capsys):
    shutil.rmtree(page.path.parent)
    page.path.parent.write_text("in the way")
    page.note({})
    assert "scenes.html could not be written" in capsys.readouterr().err


def test_a_browser_shows_it_and_loads_what_is_seen(page):
    with chromium() as launch:
        browser = launch()
        tab = Tab(browser, page.path, (1280, 800))
        tab.page.wait_for_function("document.querySelector('video').currentTime > 0.1")
        for width in (1280, 360):
            tab.page.set_viewport_size({"width": width, "height": 740})
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.page.evaluate("window.hurt") is None and tab.said == []
        assert tab.page.inner_text("article h2 >> nth=0") == EVIL
        assert tab.page.locator("article").count() == 5
        folder = page.path.parents[1].as_uri()
        assert all(url.startswith(folder) for url in tab.asked())
        tab.page.evaluate("document.body.style.paddingBottom = '2000px'; scrollTo(0, 2000)")
        tab.page.wait_for_function("document.querySelector('video').paused")
        tab.page.click("text=report")
        assert tab.page.title() == "its report"
        calm = Tab(browser, page.path, reduced_motion="reduce")
        calm.page.wait_for_function("[...document.images].every(image => image.complete)")
        assert not [url for url in calm.asked() if Path(url).suffix == ".mp4"]
