"""The exporter's formats of what moves: from a scene to files that all hold the same tracks."""

import errno
import importlib.util
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from animate124.exporter import assets_4d
from animate124.exporter.frame_files import FRAME_WRITERS
from animate124.exporter.moving_files import MOVING_FILES, MOVING_WRITERS
from animate124.exporter.old_files import drop_old_files

from test_exporter import Ball, StillBall, export, make_exporter
from test_moving_glb import Rider, frames_of

LIBRARIES = {"usd": "pxr", "usdz": "pxr", "alembic": "alembic3d"}


def needs(*formats):
    for name in formats:
        if importlib.util.find_spec(LIBRARIES.get(name, "numpy")) is None:
            pytest.skip(f"needs {LIBRARIES[name]}: pip install -e '.[usd,alembic]'")


@pytest.fixture(scope="module")
def ridden(tmp_path_factory):
    """The folder and frames.json of a ball that rides in a circle and turns."""
    folder = tmp_path_factory.mktemp("files")
    formats = ["animated-glb", "skinned-glb", "tracks"]
    summary = export(folder, Rider(), num_frames=5, formats=formats, bones=3)
    return folder / "it7-export", summary


def test_tracks_and_skeleton_are_those_of_the_scene(ridden):
    folder, summary = ridden
    tracks = np.load(folder / "tracks.npz")
    places, _ = frames_of(folder / "animation.glb")
    np.testing.assert_allclose(tracks["points"], places, atol=1e-3)  # what is still is left out
    np.testing.assert_allclose(tracks["times"], np.arange(5) / 16)
    np.testing.assert_array_equal(tracks["taus"], [0, 0.25, 0.5, 0.75, 1])
    # a ball that turns as a whole: one bone does it
    assert summary["skeleton"]["bones"] == 1
    assert 0 <= summary["skeleton"]["rms_error"] <= summary["skeleton"]["max_error"] < 1e-5
    assert summary["files"] == ["animation.glb", "skinned.glb", "tracks.npz"]
    assert (folder / "skinned.glb").stat().st_size < (folder / "animation.glb").stat().st_size


@pytest.mark.parametrize("kind", ["usd", "usdz", "alembic"])
def test_a_format_of_another_library_is_written(tmp_path, kind):
    needs(kind)
    summary = export(tmp_path, Rider(), num_frames=2, formats=[kind], resolution=12)
    assert summary["files"][0] == MOVING_WRITERS[kind][0] and summary["animation"] is None
    assert (tmp_path / "it7-export" / summary["files"][0]).stat().st_size > 1000


def test_frames_as_obj_share_a_texture_that_others_read(tmp_path):
    """trimesh looks the colours up in it: the ball's, as of tau = 0, wherever it has ridden."""
    pytest.importorskip("xatlas", reason="textures need xatlas: pip install xatlas")
    formats = ["obj", "ply"]
    summary = export(tmp_path, Rider(), num_frames=3, formats=formats, resolution=24, texture=256)
    folder = tmp_path / "it7-export"
    assert summary["files"] == ["meshes/texture.mtl", "meshes/texture.png"]
    for row in summary["frames"]:
        mesh = trimesh.load(folder / row["obj"], process=False)
        plain = trimesh.load(folder / row["ply"], process=False)
        assert len(mesh.faces) == row["faces"] == len(plain.faces)
        np.testing.assert_allclose(mesh.triangles, plain.triangles, atol=1e-5)
        middles, at = mesh.triangles_center, mesh.visual.uv[mesh.faces].mean(1)
        got = mesh.visual.material.to_color(at)[:, :3] / 255
        back = Rider().canonical(torch.tensor(middles).float(), torch.tensor(row["tau"]))
        truth = Ball.colour(back, 0.0).numpy()
        off = np.abs(got - truth).max(-1)  # a sliver's middle may lie on the next island
        assert np.quantile(off, 0.98) < 0.02 and off.mean() < 0.01


def test_a_texture_goes_with_its_frames(tmp_path):
    pytest.importorskip("xatlas", reason="textures need xatlas: pip install xatlas")
    small = {"num_frames": 2, "resolution": 12}
    export(tmp_path, Rider(), formats=["obj"], texture=32, **small)
    folder = tmp_path / "it7-export"
    assert drop_old_files(folder) == []
    export(tmp_path, Rider(), formats=["obj"], **small)
    gone = {path.name for path in drop_old_files(folder)}
    assert gone == {"texture.mtl", "texture.png"}
    assert "mtllib" not in (folder / "meshes/frame_0001.obj").read_text()


@pytest.mark.parametrize("case", ["moves", "with frames", "flip book", "still"])
def test_the_bar_ends_when_the_work_does(tmp_path, monkeypatch, case):
    """Each part of it counts, so that what is left isn't guessed from its first look."""
    geometry = {"flip book": Ball, "still": StillBall}.get(case, Rider)()
    formats = ["animated-glb", *(["ply", "obj"] if case == "with frames" else [])]
    formats += [] if case == "flip book" else ["tracks"]
    told = []
    monkeypatch.setattr(assets_4d, "progress", lambda *said: told.append(said[:2]))
    export(tmp_path, geometry, num_frames=4, formats=formats, resolution=12)
    steps = {"moves": 4, "with frames": 8, "flip book": 9, "still": 4}[case]
    assert told == [(n, steps) for n in range(1, steps + 1)]


def test_what_stands_still_is_written_too(tmp_path):
    summary = export(tmp_path, StillBall(), formats=["skinned-glb", "tracks"], resolution=12)
    assert np.load(tmp_path / "it7-export/tracks.npz")["points"].shape[0] == 1
    assert summary["skeleton"]["bones"] == 1


def test_formats_of_an_earlier_export_go(ridden, tmp_path):
    export(tmp_path, Rider(), num_frames=2, formats=["tracks"], resolution=12)
    folder = tmp_path / "it7-export"
    for name in (*MOVING_FILES, "animation.glb", "mine.glb"):
        (folder / name).touch()
    gone = {path.name for path in drop_old_files(folder)}
    assert gone == {*MOVING_FILES, "animation.glb"} - {"tracks.npz"}
    assert (folder / "mine.glb").exists()


def test_a_scene_without_tracks_is_refused_before_it_is_computed():
    with pytest.raises(ValueError, match=r"Format skinned-glb, tracks: .* Try animated-glb"):
        make_exporter(Ball(), formats=["tracks", "ply", "skinned-glb"])


@pytest.mark.parametrize(("kind", "extra"), [("usdz", "usd"), ("alembic", "alembic")])
def test_a_missing_library_is_named_before_anything_is_computed(monkeypatch, kind, extra):
    monkeypatch.setitem(sys.modules, LIBRARIES[kind], None)
    with pytest.raises(ImportError, match=rf"pip install 'threestudio-animate124\[{extra}\]'"):
        make_exporter(Rider(), formats=[kind])


@pytest.mark.parametrize("kind", MOVING_WRITERS)
def test_a_disk_without_room_is_told_before_a_library_writes(tmp_path, monkeypatch, kind):
    """USD would leave a part of a file without a word, Alembic end the process."""
    needs(kind)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        OSError, match=f"No space left.*MB may be needed.*{MOVING_WRITERS[kind][0]}"
    ):
        export(tmp_path, Rider(), num_frames=2, formats=[kind], resolution=12)
    assert not list(tmp_path.rglob("*.*"))


def test_a_full_disk_says_where_files_are_made(tmp_path, monkeypatch):
    def full(path, mesh):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it

    monkeypatch.setitem(FRAME_WRITERS, "ply", ("meshes/frame_{:04d}.ply", full))
    with pytest.raises(OSError, match=r"No space left.*are free; make room.*assets-4d-"):
        export(tmp_path, Ball(), num_frames=1, formats=["ply"], resolution=12)
