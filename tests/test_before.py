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
    """Runs the toy's stage 2; returns its checkpoint."""
    monkeypatch.chdir(ROOT)  # the toy configs name the priors from here

    def run(*overrides):
        args = parser().parse_args(["--config", "configs/toy/stage2.yaml", "--train"])
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
