"""The viewer without its server: what a run has to show, how it is drawn, and when."""

import argparse
import os

import numpy as np
import pytest
import threestudio
import torch
from animate124.data.cameras import Cameras, camera_position
from animate124.pipeline import live
from animate124.pipeline.request import camera_path
from animate124.system import snapshots
from animate124.system.snapshots import SHARE, SNAPSHOT, Snapshots
from animate124.system.trained import load_scene
from animate124.viewer import command, looking, runs
from animate124.viewer.looking import Eye, cameras_of, draw, place
from animate124.viewer.scenes import Scenes
from animate124.viewer.session import OFTEN, REST, SMALLEST, Pace, Session
from scipy.spatial.transform import Rotation

from trials import SYSTEM, write_checkpoint, write_trial


def at(path, seconds):
    """Sets when a file was written."""
    os.utime(path, (seconds, seconds))
    return path


@pytest.fixture
def run(tmp_path):
    """A run whose third stage has just begun; stage 2's blob rises."""
    folder = tmp_path / "out" / "fox"
    for n, name in enumerate(("stage1", "stage2")):
        at(write_trial(folder / name, rise=0.25 * n) / "ckpts" / "last.ckpt", 1000 + n)
    write_trial(folder / "stage3", begun=True)
    return folder


# ------------------------------------------------------------------------------ runs


def test_a_run_has_its_stages_and_the_newest_of_each(run):
    assert list(runs.stages(run)) == ["stage1", "stage2"]
    assert runs.chosen(run, None).name == "stage2"
    assert runs.chosen(run, "stage1").checkpoint == run / "stage1" / "ckpts" / "last.ckpt"
    for seconds, name in ((999, "ckpts/last.ckpt"), (2000, SNAPSHOT)):
        (run / "stage1" / SNAPSHOT).touch()
        at(run / "stage1" / SNAPSHOT, seconds)
        assert runs.stages(run)["stage1"].checkpoint == run / "stage1" / name
    assert runs.chosen(run, None).name == "stage1"
    assert list(runs.stages(run / "stage2")) == ["stage2"]  # a trial of launch.py


@pytest.mark.parametrize(
    ("folder", "stage", "says"),
    [
        ("out/fox", "stage4", "--stage stage4: .*fox has stage1, stage2, stage3"),
        ("out/fox", "stage3", "stage3 of .* has no checkpoint yet. stage1, stage2 would do"),
        ("out/fox/stage3", None, "stage3 of .* has no checkpoint yet. With --follow"),
        ("out", None, "out is no run: .* It has the runs fox"),
        ("out/fox/stage1/ckpts", None, "ckpts is no run: .* Has it begun"),
        ("nowhere", None, "There is no folder .*nowhere"),
    ],
)
def test_what_there_is_nothing_to_see_of_is_one_line(folder, stage, says, run, capsys, monkeypatch):
    monkeypatch.setattr(live, "find_spec", lambda name: name)
    words = [str(run.parents[1] / folder), *(["--stage", stage] if stage else [])]
    monkeypatch.setattr(command, "serve", lambda args: pytest.fail("it was served"))
    assert command.main(words) == 1
    assert np.array(capsys.readouterr().err.splitlines()).size == 1
    with pytest.raises(ValueError, match=says):
        runs.chosen(run.parents[1] / folder, stage)


def test_without_viser_it_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    assert command.main([str(run)]) == 1
    assert "`pip install viser`" in capsys.readouterr().err


def test_a_field_without_loop_is_refused_before_anything_is_served(run, capsys, monkeypatch):
    monkeypatch.setattr(live, "find_spec", lambda name: name)
    path = run / "stage2" / "configs" / "parsed.yaml"
    path.write_text(path.read_text().replace("HashGridDeformation", "HashGridOther"))
    assert command.main([str(run), "--loop"]) == 1
    assert "HashGridOther" in capsys.readouterr().err


def test_scenes_are_loaded_once_and_again_when_they_have_changed(run):
    scenes = Scenes(run)
    assert scenes.look() and not scenes.look() and scenes.newest == "stage2"
    before = scenes.of("stage2")
    assert scenes.of("stage2") is before and scenes.of("stage2", normals=True) is not before
    write_checkpoint(run / "stage3" / SNAPSHOT, 0.1)
    at(run / "stage2" / "ckpts" / "last.ckpt", 3000)
    assert scenes.look() and list(scenes.stages) == ["stage1", "stage2", "stage3"]
    assert scenes.newest == "stage3" and scenes.of("stage2") is not before
    assert Scenes(run.parent).newest == "" and not Scenes(run.parent).look()  # nothing yet


# ------------------------------------------------------------------------------ drawing


def middle(picture):
    """Row and column of what isn't white."""
    rows, columns = np.nonzero(picture.min(axis=-1) < 250)
    return rows.mean(), columns.mean()


def test_a_viewers_camera_is_the_one_of_the_same_angles():
    elevation, azimuth, distance = (torch.tensor([v]) for v in (25.0, 130.0, 2.2))
    position = camera_position(elevation, azimuth, distance)[0]
    found = cameras_of(Eye(tuple(position.tolist()), fovy=np.deg2rad(40)))
    expected = Cameras.of(25.0, 130.0, 2.2, 40.0)
    torch.testing.assert_close(found.c2w, expected.c2w)
    torch.testing.assert_close(found.fovy, expected.fovy)
    assert place(Eye(tuple(position.tolist())), azimuth_deg=-100.0) == "-130,25,2.2"
    assert camera_path(place(Eye((0.0, -3.0, 0.0)), 0.0)) == "-90,0,3"


def test_a_viewers_camera_is_level_wherever_it_looks():
    eye = Eye((2.0, 1.0, 1.5), look_at=(0.3, -0.4, 0.2))
    right, up, backward, position = cameras_of(eye).c2w[0, :3].double().T
    forward = torch.tensor(eye.look_at).double() - position
    torch.testing.assert_close(-backward, forward / forward.norm(), atol=1e-6, rtol=0)
    assert abs(right[2]) < 1e-6 and up[2] > 0
    # as scipy turns a camera there that looks along -z: about z, then down
    x, y, z = forward.tolist()
    yaw = np.arctan2(-x, y)
    pitch = np.arctan2(z, np.hypot(x, y))
    turned = Rotation.from_euler("ZX", [yaw, pitch + np.pi / 2]).as_matrix()
    np.testing.assert_allclose(torch.stack([right, up, backward], 1), turned, atol=1e-6)


@pytest.mark.parametrize("mode", looking.MODES)
def test_each_mode_shows_the_blob_where_it_is_then(mode, run):
    scenes = Scenes(run)
    scenes.look()
    scene, camera = scenes.of("stage2", mode == "normal"), Cameras.of([0.0, 0.0])
    first, last = draw(scene, camera, torch.tensor([0.0, 1.0]), mode, 24, 32)
    assert first.shape == (24, 32, 3) and first.dtype == np.uint8
    if mode == "opacity":  # black is nothing
        first, last = 255 - first, 255 - last
        assert last.min() == 0 and (last[..., 0] == last[..., 1]).all()
    assert middle(first) == pytest.approx((11.5, 15.5), abs=0.5)
    # 0.5 of the box higher, 2.5 away, at 40 degrees: so many of 24 pixels
    up = 24 * 0.5 / 2.5 / (2 * np.tan(np.deg2rad(20)))
    assert middle(last) == pytest.approx((11.5 - up, 15.5), abs=0.7)
    if mode == "normal":  # towards the camera on +x, before white
        assert first[12, 16].tolist() == pytest.approx([255, 128, 128], abs=16)


def test_depth_is_as_far_as_the_surface_is(run):
    scene = load_scene(run / "stage1/configs/parsed.yaml", run / "stage1/ckpts/last.ckpt")
    near, far = (
        draw(scene, Cameras.of(0.0, 0.0, away), torch.zeros(1), "depth", 33, 33)[0][16, 16].tolist()
        for away in (2.0, 3.0)
    )
    assert near == pytest.approx(far, abs=3)  # as far from where the camera turns about
    assert near[0] > near[2]  # nearer than that: red


# ------------------------------------------------------------------------------ when


def session(**given) -> Session:
    return Session(Eye((2.5, 0.0, 0.0)), stage="stage1", largest=256, **given)


def seen(one, pace, now, speed=None):
    """The heights of the pictures that come one after the other, each drawn in no time."""
    heights = []
    while (wish := one.due(now, pace)) is not None:
        heights.append(wish.height)
        if speed is not None:
            pace.took(wish.mode, wish.height * wish.width, wish.height * wish.width / speed)
    return heights


def test_a_picture_at_rest_grows_to_its_full_size_and_then_none_is_due():
    one, pace = session(), Pace()
    assert seen(one, pace, now=0.0) == [SMALLEST, 64, 128, 256]
    assert seen(one, pace, now=10.0) == []
    one.mode = "depth"
    assert seen(one, pace, now=10.0) == [SMALLEST]  # it may go on moving
    assert seen(one, pace, now=10.0 + REST) == [64, 128, 256]


def test_while_it_moves_pictures_are_as_large_as_is_fast_enough():
    one, pace = session(aspect=2.0), Pace()
    seen(one, pace, 0.0, speed=1e5)
    for n in range(5):
        one.eye = Eye((2.5, 0.1 + n, 0.0))
        (height,) = seen(one, pace, 1.0 + 0.1 * n)
        assert 0.7 < 2 * height**2 / 1e5 * OFTEN <= 1
    slow = Pace()
    slow.took("colour", 1000, 100.0)
    assert slow.height("colour", 1.0) == SMALLEST
    assert slow.height("normal", 1.0) == SMALLEST  # of which nothing is known
    fast = Pace()
    fast.took("colour", 10**9, 0.1)
    one.tau = 0.5
    assert seen(one, fast, 9.0)[0] == 256


def test_time_runs_from_where_it_stands_and_begins_anew():
    one, pace = session(seconds=4.0, tau=0.5), Pace()
    one.play(now=100.0)
    times = []
    for now in (100.0, 101.0, 102.0, 103.0):
        wish = one.due(now, pace)
        assert wish is not None
        times.append(wish.tau)
    assert times == pytest.approx([0.5, 0.75, 0.0, 0.25])
    one.pause()
    one.due(110.0, pace)
    assert one.tau == pytest.approx(0.25)


def test_another_load_of_the_scene_is_shown():
    one, pace = session(), Pace()
    seen(one, pace, 0.0)
    one.version += 1
    assert seen(one, pace, 5.0) == [SMALLEST]


# ------------------------------------------------------------------------------ while it trains


@pytest.fixture
def system(tmp_path):
    """One that is being trained, with a prior."""
    found = threestudio.find("animate124-system")(SYSTEM)
    found.guidance = torch.nn.Linear(9, 9)
    found.set_save_dir(str(tmp_path / "save"))
    return found


def test_snapshots_are_of_the_scene_alone_and_take_little_time(system, tmp_path, monkeypatch):
    now, written = [100.0], []

    def save(held, path):
        written.append(held)
        path.write_text("there")
        now[0] += 3.0

    monkeypatch.setattr(snapshots.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(snapshots.torch, "save", save)
    Snapshots.asked_for(system).take(system)
    assert not list(tmp_path.iterdir())  # nobody asked
    monkeypatch.setenv(snapshots.VARIABLE, "1")
    taken = Snapshots.asked_for(system)
    for _ in range(1000):  # steps of a second
        taken.take(system)
        now[0] += 1.0
    names = {key.partition(".")[0] for key in written[0]["state_dict"]}
    assert names == {"geometry", "renderer", "background"}
    assert 3.0 * len(written) / 1000 == pytest.approx(SHARE, rel=0.2)
    assert (tmp_path / SNAPSHOT).read_text() == "there"
    taken.remove()
    assert not list(tmp_path.iterdir())


def test_a_snapshot_that_fails_is_a_warning_and_the_last(system, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(snapshots.threestudio, "warn", said.append)
    (tmp_path / "file").touch()
    taken = Snapshots(tmp_path / "file" / SNAPSHOT)
    for _ in range(2):
        taken.next = 0.0
        taken.take(system)
    assert len(said) == 1 and "No more snapshots" in said[0] and "file" in said[0]


def test_a_snapshot_can_be_looked_at(tmp_path):
    system = load_scene(
        *(write_trial(tmp_path / "a", rise=0.2) / p for p in ("configs/parsed.yaml", runs.LAST))
    ).system
    taken = Snapshots(write_trial(tmp_path / "b", begun=True) / SNAPSHOT)
    taken.take(system)
    scenes = Scenes(tmp_path / "b")
    assert scenes.look() and not scenes.of("b").static


def test_numbers_of_the_command_line_are_checked():
    for words in (["--size", "8"], ["--port", "0"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit):
            command.parser().parse_args(["run", *words])
    assert isinstance(command.parser().parse_args(["run"]), argparse.Namespace)
    assert command.parser().parse_args(["run"]).host == "127.0.0.1"
