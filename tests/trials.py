"""A trial's folder with the scene of a blob that nobody trained, for tests that look at one."""

import math
from pathlib import Path

import threestudio
import torch
from omegaconf import OmegaConf

SYSTEM = {
    "geometry_type": "animate124-implicit-volume",
    "geometry": {
        "density_blob_scale": 100.0,
        "pos_encoding_config": {
            "otype": "HashGridDeformation",
            "n_levels": 2,
            "log2_hashmap_size": 6,
            "deformation_cells": [2],
            "deformation_spans": 4,
        },
        "mlp_network_config": {"n_neurons": 4},
    },
    "material_type": "no-material",
    "background_type": "solid-color-background",
    "renderer_type": "animate124-nerf-volume-renderer",
    "renderer": {"num_samples_per_ray": 64},
}


def write_trial(folder: Path, rise: float = 0.0, *, begun: bool = False) -> Path:
    """rise: how far the blob is above its place at tau = 1, of the box's side. begun: the stage has
    no checkpoint yet."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    cfg = {"system_type": "animate124-system", "system": SYSTEM, "data": {}}
    (folder / "configs" / "parsed.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    if not begun:
        write_checkpoint(folder / "ckpts" / "last.ckpt", rise)
    return folder


def write_checkpoint(path: Path, rise: float) -> None:
    system = threestudio.find("animate124-system")(SYSTEM)
    deformation = system.geometry.deformation
    with torch.no_grad():
        deformation.whole.twist[-3:, 5] = rise
        assert math.isclose(float(deformation.whole(torch.ones(1, 1))[1][0, 2]), rise, abs_tol=1e-6)
    system.renderer.estimator.fill()
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": system.state_dict(), "epoch": 0, "global_step": 5}, path)
