"""A trained scene as others get it: whether it stands still, and what it is built without."""

import pytest
import threestudio
import torch
from animate124.data.cameras import Cameras
from animate124.geometry.times import is_static
from animate124.system import checkpoints
from animate124.system.trained import lighten, load_scene
from omegaconf import OmegaConf
from threestudio.models.geometry.base import BaseImplicitGeometry

SYSTEM = {
    "geometry_type": "animate124-implicit-volume",
    "geometry": {
        "pos_encoding_config": {"n_levels": 2, "log2_hashmap_size": 6},
        "mlp_network_config": {"n_neurons": 4},
    },
    "material_type": "no-material",
    "background_type": "solid-color-background",
    "renderer_type": "animate124-nerf-volume-renderer",
    "renderer": {"num_samples_per_ray": 8, "return_comp_normal": True},
    "weights": "an/earlier/stage/that/is/gone.ckpt",
}


class Timeless(BaseImplicitGeometry):
    def forward(self, points, output_normal=False):
        raise NotImplementedError


class Timed(BaseImplicitGeometry):
    def forward(self, points, output_normal=False, times=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "says", "static"),
    [
        (Timeless, None, True),  # a stock geometry's
        (Timeless, False, True),
        (Timed, None, False),
        (Timed, True, True),
        (Timed, False, False),
    ],
)
def test_a_scene_stands_still_if_it_takes_no_times_or_says_so(kind, says, static):
    geometry = kind({})
    if says is not None:
        geometry.static = says
    assert is_static(geometry) is static


@pytest.fixture
def trial(tmp_path):
    """Config and checkpoint of a scene that nobody trained."""
    config, checkpoint = tmp_path / "parsed.yaml", tmp_path / "last.ckpt"
    system = threestudio.find("animate124-system")({**SYSTEM, "weights": None})
    torch.save({"state_dict": system.state_dict(), "epoch": 0, "global_step": 5}, checkpoint)
    cfg = {"system_type": "animate124-system", "system": SYSTEM, "data": {}}
    config.write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    return config, checkpoint


def test_a_scene_is_looked_at_without_normals_and_without_what_it_started_from(trial):
    scene = load_scene(*trial)
    assert not scene.static and scene.system.geometry.cfg.normal_type is None
    render = scene.look(Cameras.of(torch.zeros(2)), torch.tensor([0.0, 0.5]), 6, 5)
    assert render["comp_rgb"].shape == (2, 6, 5, 3) and "comp_normal" not in render
    assert not render["comp_rgb"].requires_grad


def test_modules_that_say_nothing_of_being_light_are_built_as_they_are():
    cfg = OmegaConf.create({**SYSTEM, "geometry_type": "no-material", "geometry": {"a": 1}})
    lighten(cfg)
    assert cfg.geometry == {"a": 1} and cfg.renderer.return_comp_normal is False


def test_a_checkpoint_of_another_scene_names_both_files(trial):
    config, checkpoint = trial
    held = torch.load(checkpoint)
    held["state_dict"]["geometry.density_network.layers.0.weight"] = torch.zeros(4, 5)
    torch.save(held, checkpoint)
    with pytest.raises(ValueError, match=r"(?s)last\.ckpt doesn't fit .*parsed\.yaml: .*layers\.0"):
        load_scene(config, checkpoint)
    config.write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"describes no trial \(it has the keys a\)"):
        load_scene(config, checkpoint)


def test_a_host_that_says_a_key_alone_is_put_into_words(trial, monkeypatch):
    def read(path, **_):
        raise KeyError("epoch")  # as the real threestudio's does

    monkeypatch.setattr(checkpoints, "load_module_weights", read)
    with pytest.raises(ValueError, match=r"last\.ckpt has no 'epoch': it isn't a checkpoint"):
        checkpoints.read(trial[1])
