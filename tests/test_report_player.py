"""The moving mesh of a report, in a browser: it plays, turns and zooms, by mouse and by keys."""

import re

import numpy as np
import pytest
from animate124.exporter.flip_book import write_glb
from animate124.exporter.morph_glb import write_moving_glb
from animate124.exporter.moving_mesh import MovingMesh
from animate124.exporter.surface import Mesh
from animate124.pipeline import page
from animate124.pipeline.result_files import MESH

import textured_morph
from browser import Tab, chromium

CANVAS = "#player canvas"
CARD = (255, 255, 255)  # the page's ground where nothing is drawn
STILL = {"reduced_motion": "reduce"}  # of a context: then nothing moves by itself
EVIL = "</script></title><script>hurt = 1</script><img src=x onerror='hurt = 1'>{{7*7}}"


def switched(path, frames=5):
    """A box that rises, as one mesh a frame: what the exporter makes of a scene without tracks."""
    box = textured_morph.box()
    colours = np.repeat(np.array(textured_morph.COLOURS)[:, ::-1] / 255, 4, axis=0)
    faces = box["indices"].reshape(-1, 3).astype(np.int64)
    meshes = [
        # z is up in a scene
        Mesh((box["POSITION"] + up)[:, [2, 0, 1]], faces, box["NORMAL"][:, [2, 0, 1]], colours)
        for up in np.linspace((0, 0, 0), (0, 1, 0), frames)
    ]
    write_glb(path, meshes, fps=frames / 2)


def followed(path, lit=False):
    """The box as the exporter writes what can be followed."""
    box, frames = textured_morph.box(), 5
    up = np.linspace((0, 0, 0), (0, 1, 0), frames)
    places = (box["POSITION"] + up[:, None])[..., [2, 0, 1]]
    normals = np.repeat(box["NORMAL"][None, :, [2, 0, 1]], frames, axis=0)
    uv = box["TEXCOORD_0"] * [1, -1] + [0, 1]  # from the lower left
    texture = np.repeat(np.repeat([textured_morph.COLOURS], 16, axis=1), 16, axis=0)[..., ::-1]
    moving = MovingMesh(
        taus=np.linspace(0, 1, frames),
        places=places.astype(np.float32),
        normals=normals,
        faces=box["indices"].reshape(-1, 3).astype(np.int64),
        colours=np.ones((24, 3)),
        uv=uv,
        texture=texture.astype(np.uint8),
    )
    write_moving_glb(path, moving, fps=2.0, lit=lit)


def facts(**more):
    base = {"prompt": "a box", "preset": "toy", "field": "grid", "seconds": 1.0, "files": []}
    base |= {"playback": None, "skeleton": None, "further_files": []}
    return {**base, "written": "2000-01-01T00:00", "steps": [], "versions": {}, **more}


def report(folder, write=textured_morph.write, **more):
    """A report of a mesh that is written by `write`."""
    write(folder / MESH)
    path = folder / "report.html"
    path.write_text(page.page(facts(files=[MESH], **more), folder, []), encoding="utf-8")
    return path


def ready(tab):
    """Waits until the mesh is there or isn't going to be; what the page says it does."""
    tab.page.wait_for_function("document.getElementById('player').dataset.state !== 'loading'")
    return tab.page.evaluate("document.getElementById('player').dataset.state")


def drag_time(tab, share):
    tab.page.evaluate(
        """share => {
            const slider = document.querySelector('[data-part="time"]');
            slider.value = share * slider.max;
            slider.dispatchEvent(new Event("input"));
        }""",
        share,
    )


@pytest.fixture(scope="module")
def launch():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def browser(launch):
    return launch()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A report whose every text would do harm if it were more than text."""
    loss = {"final": 1.0, "curve": [(1, 1.0), (2, 2.0)]}
    step = {"name": EVIL, "state": EVIL, "command": EVIL, "checkpoint": EVIL, "unread": [EVIL]}
    said = {"prompt": EVIL, "preset": EVIL, "field": EVIL, "versions": {EVIL: EVIL}}
    path = report(tmp_path_factory.mktemp("r"), **said, steps=[{**step, "losses": {EVIL: loss}}])
    tab = Tab(browser, path, **STILL)
    assert ready(tab) == "moves"
    return tab


@pytest.fixture
def tab(opened):
    """That report as it was when it was opened; nothing may be said or asked for meanwhile."""
    drag_time(opened, 0)
    for name in ("colours", "wireframe"):
        button = opened.page.locator(f"[data-part={name}]")
        if (button.get_attribute("aria-pressed") == "true") != (name == "colours"):
            button.click()
    opened.page.evaluate(
        "document.querySelector('[data-part=front]').click(); document.activeElement.blur();"
        "scrollTo(0, 0)"
    )
    yield opened
    assert opened.said == [] and opened.asked() == []


def covered(picture):
    return (picture != CARD).any(-1)


def centre(picture):
    """The pixel in the middle of what is drawn."""
    y, x = (int(v.mean()) for v in np.nonzero(covered(picture)))
    return picture[y, x].astype(int)


def rises(tab):
    """How far the box is above where it began at some shares of the time, the last one being 1."""
    rows = []
    for share in (0, 0.25, 0.3, 0.5, 1):
        drag_time(tab, share)
        picture = tab.picture(CANVAS)
        rows.append(np.nonzero(covered(picture))[0].mean())
    # the reference camera stands in front of the side that looks to +z, whose colour is as it was
    assert np.abs(centre(picture) - textured_morph.COLOURS[5]).max() <= 1
    up = rows[0] - np.array(rows[1:])
    assert up[-1] > len(picture) / 5
    return up / up[-1]


def test_time_is_dragged(tab):
    # linear between frames; in perspective that is nearly so in pixels
    np.testing.assert_allclose(rises(tab), [0.25, 0.3, 0.5, 1], atol=0.03)


def plays_and_stops(tab):
    """A page that was opened plays by itself until the button stops it."""
    button, clock = tab.page.locator("[data-part=play]"), tab.page.locator("[data-part=clock]")
    assert button.inner_text() == "Pause"
    text = "document.querySelector('[data-part=clock]').textContent"
    for _ in range(3):
        tab.page.wait_for_function(f"was => {text} !== was", arg=clock.inner_text())
        assert re.fullmatch(r"[012]\.\d\d / 2\.[05]0 s", clock.inner_text())
    button.click()
    assert button.inner_text() == "Play"
    stopped = clock.inner_text()
    tab.page.wait_for_timeout(100)
    assert clock.inner_text() == stopped


@pytest.mark.parametrize(("write", "at"), [(switched, 0.25), (followed, 0.3)])
def test_both_animations_of_the_exporter_play(write, at, browser, tmp_path):
    """One has five frames of a fifth of the time each, the other is linear between its frames."""
    tab = Tab(browser, report(tmp_path, write))
    assert ready(tab) == "moves"
    plays_and_stops(tab)
    np.testing.assert_allclose(rises(tab), [0.25, at, 0.5, 1], atol=0.03)
    assert tab.said == [] and tab.asked() == []


def test_a_lit_mesh_has_light(browser, tmp_path):
    tab = Tab(browser, report(tmp_path, lambda path: followed(path, lit=True)), **STILL)
    ready(tab)
    # shaded, yet the texture's hue: of the side in front blue is least
    blue, green, red = centre(tab.picture(CANVAS))
    assert 30 < blue < green < 256 and blue < red
    assert tab.said == []


LEFT, RIGHT, TOP, FRONT = 0, 1, 3, 5


def sides(picture):
    """Which of the box are seen, by their places in textured_morph's list."""
    seen = {tuple(pixel) for pixel in picture[covered(picture)].tolist()}
    return {n for n, colour in enumerate(textured_morph.COLOURS) if colour in seen}


def test_the_view_is_dragged(tab):
    still = tab.picture(CANVAS)
    box = tab.page.locator(CANVAS).bounding_box()
    x, y, size = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]
    tab.page.mouse.move(x, y)
    tab.page.mouse.wheel(0, 30)  # nobody has taken hold of it: the page scrolls
    tab.page.wait_for_function("scrollY > 0")
    tab.page.evaluate("scrollTo(0, 0)")
    assert (tab.picture(CANVAS) == still).all()
    tab.page.mouse.down()
    tab.page.mouse.move(x - size / 8, y + size / 8, steps=4)
    tab.page.mouse.up()
    turned = tab.picture(CANVAS)
    assert sides(still) == {FRONT} and sides(turned) == {FRONT, RIGHT, TOP}
    tab.page.mouse.wheel(0, -300)
    assert covered(tab.picture(CANVAS)).sum() > 1.2 * covered(turned).sum()
    tab.page.click("text=Front")
    assert (tab.picture(CANVAS) == still).all()


def test_keys_do_what_the_mouse_does(tab):
    press = tab.page.keyboard.press
    clocks = []
    # from the start it goes back to the end, and from there on to the start
    for key in ("Right", "Right", "Left", "Left", "Left", "Right"):
        press(f"Arrow{key}")
        clocks.append(tab.page.inner_text("[data-part=clock]").split()[0])
    assert clocks == ["0.50", "1.00", "0.50", "0.00", "2.00", "0.00"]
    seen = [tab.picture(CANVAS)]
    for key in ("Shift+ArrowLeft", "Shift+ArrowUp", "+", "-", "w", "c"):
        for _ in range(3):
            press(key)
        seen.append(tab.picture(CANVAS))
        assert (seen[-1] != seen[-2]).any(), key
    # the camera goes where the arrow points
    assert sides(seen[1]) == {FRONT, LEFT} and sides(seen[2]) == {FRONT, LEFT, TOP}
    sizes = [covered(picture).sum() for picture in seen]
    assert sizes[3] > 1.15 * sizes[2] and sizes[4] == pytest.approx(sizes[2], rel=0.01)
    assert sizes[5] < 0.3 * sizes[4]  # edges alone
    for key in ("w", "c", "f"):
        press(key)
    assert (tab.picture(CANVAS) == seen[0]).all()
    press(" ")
    assert tab.page.inner_text("[data-part=play]") == "Pause"
    tab.page.focus("[data-part=wireframe]")
    press(" ")  # presses the button that has the focus
    assert tab.page.inner_text("[data-part=play]") == "Pause"
    assert tab.page.get_attribute("[data-part=wireframe]", "aria-pressed") == "true"


def test_colours_are_the_textures_or_the_directions(tab):
    tab.page.click("text=Colours")
    # +z towards the camera: (0, 0, 1) is shown as (0.5, 0.5, 1)
    assert np.abs(centre(tab.picture(CANVAS)) - (255, 128, 128)).max() <= 1


def test_the_file_can_be_had_from_the_page(tab, tmp_path):
    textured_morph.write(tmp_path / MESH)
    with tab.page.expect_download() as got:
        tab.page.click("[data-part=save]")
    assert got.value.suggested_filename == MESH
    assert got.value.path().read_bytes() == (tmp_path / MESH).read_bytes()


def test_it_fits_a_phone(tab):
    width = 360
    tab.page.set_viewport_size({"width": width, "height": 740})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for place in ("#player", "#player button"):
        for found in tab.page.locator(place).all():
            box = found.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 40
    # a finger that goes up or down scrolls the page
    style = f"getComputedStyle(document.querySelector('{CANVAS}'))"
    assert tab.page.evaluate(f"{style}.touchAction") == "pan-y"
    for scheme, dark in (("dark", True), ("light", False)):
        tab.page.emulate_media(color_scheme=scheme)
        ground = tab.picture(CANVAS)[2, 2].mean()  # through the clear canvas
        assert ground < 60 if dark else ground > 200


def test_text_stays_text(tab):
    assert tab.page.evaluate("window.hurt") is None
    assert tab.page.inner_text("h1") == EVIL and tab.page.title() == EVIL
    count = "document.querySelectorAll('{}').length"
    assert tab.page.evaluate(count.format("img")) == 0
    assert tab.page.evaluate(count.format("script")) == 3


def test_a_mesh_that_stands_still_has_no_time(browser, tmp_path):
    tab = Tab(browser, report(tmp_path, lambda path: switched(path, frames=1)))
    assert ready(tab) == "still"
    assert not tab.page.is_visible("[data-part=time]") and tab.page.is_visible("text=Wireframe")
    before = tab.picture(CANVAS)
    tab.page.keyboard.press("ArrowRight")
    assert covered(before).any() and (tab.picture(CANVAS) == before).all()
    assert tab.said == []


def test_a_file_that_is_no_mesh_is_a_line(browser, tmp_path):
    tab = Tab(browser, report(tmp_path, lambda path: path.write_bytes(b"glTF, but cut off")))
    assert ready(tab) == "failed"
    assert "can't be shown" in tab.page.inner_text("[data-part=says]")
    assert not tab.page.is_visible(CANVAS) and not tab.page.is_visible("text=Wireframe")
    assert tab.said == []


def test_a_browser_without_webgl_says_so(launch, tmp_path):
    tab = Tab(launch("--disable-3d-apis"), report(tmp_path))
    assert ready(tab) == "failed"
    assert "WebGL" in tab.page.inner_text("[data-part=says]")
    assert not tab.page.is_visible(CANVAS)
    assert tab.said == [] and tab.asked() == []


def test_no_script_can_end_early():
    for name in ("player.js", "three/three.min.js"):
        assert not re.search(r"</script|<!--|<script", page.asset(name), re.IGNORECASE), name


def test_three_comes_with_its_licence(tmp_path):
    licence = page.asset("three/LICENSE.txt").strip()
    assert licence.startswith("The MIT License")
    assert licence in report(tmp_path).read_text(encoding="utf-8")


def test_without_a_mesh_there_is_no_script(tmp_path):
    assert "<script" not in page.page(facts(), tmp_path, [])


def test_a_mesh_too_large_for_a_page_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EMBEDDED", 1000)
    text = report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in text and re.search(r"animation\.glb \(\d+ kB\) lies beside", text)


def test_sizes_are_read_at_a_glance():
    sizes = [page.file_size(n) for n in (1, 1000, 999_999, 3_449_000)]
    assert sizes == ["1 kB", "1 kB", "1000 kB", "3.4 MB"]
