"""The task "assets": what a scene's files are made into, and what happens where none can be."""

import errno
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pygltflib
import pytest
import threestudio
import torch
from animate124.pipeline.exporting import export
from animate124.pipeline.tasks.assets import parser

from test_exporter import Ball, StillBall
from test_moving_glb import Rider, frames_of

CONFIG = {"num_frames": 3, "resolution": 32, "faces": 0, "texture": 0, "threshold": 30.0}
CONFIG |= {"formats": ["animated-glb"]}


def system(geometry):
    """What the task asks of a trained scene's."""
    material = threestudio.find("no-material")({})
    background = threestudio.find("solid-color-background")({})
    return SimpleNamespace(geometry=geometry, material=material, background=background)


class Crowd(Rider):
    """The ball of tau = 0 among 30 specks."""

    def forward_density(self, points, times=None):
        home = self.canonical(points, times)
        specks = torch.cartesian_prod(*[torch.linspace(-0.9, 0.9, 4)] * 3)[:30]
        near = torch.cdist(home, specks).amin(-1, keepdim=True) < 0.07
        return super().forward_density(points, times).maximum(60.0 * near)


def test_a_scene_without_surface_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"No surface at tau = 0: .*assets.threshold.*is empty"):
        export(system(Rider(density=0.0)), CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_of_many_pieces_the_small_ones_are_dropped(tmp_path, monkeypatch):
    away, said = [], []
    monkeypatch.setattr(threestudio, "warn", said.append)
    for share in (0.0, 0.3):
        export(system(Crowd()), CONFIG | {"min_part": share}, tmp_path)
        places, _ = frames_of(tmp_path / "animation.glb")
        away.append(np.linalg.norm(places[0] - Ball.centre(0.0).numpy(), axis=-1).max())
    assert len(said) == 1 and "in small pieces" in said[0] and "min_part=0" in said[0]
    assert away[0] > 1 and away[1] < Ball.radius(0.0) + 0.2


def test_what_stands_still_is_a_mesh_without_animation(tmp_path):
    export(system(StillBall()), CONFIG, tmp_path)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "animation.glb"))
    assert not gltf.animations and not gltf.meshes[0].primitives[0].targets
    (frame,) = json.loads((tmp_path / "frames.json").read_text())["frames"]
    assert frame["tau"] == 0.0


def test_a_full_disk_leaves_no_half_a_file(tmp_path, monkeypatch):
    (tmp_path / "animation.glb").write_text("of before")

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        export(system(Rider()), CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["animation.glb"]
    assert (tmp_path / "animation.glb").read_text() == "of before"


@pytest.mark.parametrize("word", ["--keys=0", "--frames=0", "--faces=-1", "--also=fbx"])
def test_options_that_cant_be_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--config=a", "--checkpoint=b", "--out=c", word])
    assert word.split("=")[0] in capsys.readouterr().err
