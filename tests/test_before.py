"""What the release before wrote (tests/before/, a tiny scene of its toy configs) still works: stage
2 starts from its stage 1, goes on from its own checkpoint, and the scene looks as it did there.

`stage2.npy` is what that release rendered: colours and opacity from two cameras, at two times.
`settings.json` has the hashes of its tasks' settings (tests/test_pipeline_plan.py).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.system.trained import load_scene
from threestudio.launch import main, parser

ROOT = Path(__file__).parents[1]
BEFORE = ROOT / "tests" / "before"
TINY = (  # as the scene was trained there
    *(f"data.{name}=16" for name in ("image.width", "image.height")),
    *(f"data.single_view.{name}=16" for name in ("width", "height", "width_vid", "height_vid")),
    *(
        f"system.geometry.pos_encoding_config.{word}"
        for word in ("n_levels=2", "base_resolution=4")
    ),
    "system.geometry.pos_encoding_config.log2_hashmap_size=8",
    "system.geometry.mlp_network_config.n_neurons=16",
    "system.renderer.num_samples_per_ray=16",
    "system.prompt_processor.prompt=a panda is dancing",
    *("trainer.limit_val_batches=0", "trainer.limit_test_batches=0"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs a toy's stage 2; returns its checkpoint."""
    monkeypatch.chdir(ROOT)  # the toy configs name the priors from here

    def run(*overrides, config="toy/stage2"):
        args = parser().parse_args(["--config", f"configs/{config}.yaml", "--train"])
        words = [*TINY, f"exp_root_dir={tmp_path}", *overrides]
        trial = Path(main(args, words, "animate124"))
        return torch.load(trial / "ckpts" / "last.ckpt", weights_only=True)

    return run


def test_stage_2_starts_from_its_stage_1(train):
    held = train(f"system.weights={BEFORE / 'stage1.ckpt'}", "trainer.max_steps=1")
    assert held["global_step"] == 1
    was = torch.load(BEFORE / "stage2.ckpt", weights_only=True)["state_dict"]
    assert {key: value.shape for key, value in held["state_dict"].items()} == {
        key: value.shape for key, value in was.items()
    }


def test_a_deformation_starts_from_its_stage_1_and_keeps_it(train):
    weights = f"system.weights={BEFORE / 'stage1.ckpt'}"
    held = train(weights, "trainer.max_steps=2", config="toy/deformation-stage2")["state_dict"]
    was = torch.load(BEFORE / "stage1.ckpt", weights_only=True)["state_dict"]
    kept = {k for k in was if k.startswith("geometry.") and "encoding_time" not in k}
    assert len(kept) >= 5 and all(torch.equal(held[key], was[key]) for key in kept)
    moved = {key for key in held if ".deformation." in key}
    assert moved and all(held[key].any() for key in moved)


def test_a_deformation_refuses_its_stage_2(train):
    with pytest.raises(ValueError, match="start from the static scene of stage 1"):
        train(f"system.weights={BEFORE / 'stage2.ckpt'}", config="toy/deformation-stage2")


def test_its_stage_2_goes_on(train):
    held = train(f"resume={BEFORE / 'stage2.ckpt'}", "trainer.max_steps=4")
    assert held["global_step"] == 4
    was = torch.load(BEFORE / "stage2.ckpt", weights_only=True)
    assert was["global_step"] == 3
    table = "geometry.encoding.encoding.encoding_time.params"
    moved = held["state_dict"][table] - was["state_dict"][table]
    assert 0 < moved.abs().max() < 0.05  # a step further, not a new start


def test_its_scene_looks_as_it_did():
    scene = load_scene(BEFORE / "stage2.yaml", BEFORE / "stage2.ckpt")
    cameras, tau = Cameras.of(15.0, torch.tensor([0.0, 120.0])), torch.tensor([0.0, 0.6])
    seen = scene.look(cameras, tau, 16, 16)
    seen = torch.cat([seen["comp_rgb"], seen["opacity"]], dim=-1).cpu().numpy()
    np.testing.assert_allclose(seen, np.load(BEFORE / "stage2.npy"), atol=1e-3)
