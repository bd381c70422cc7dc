"""The subject of a picture by GrabCut, against masks that are known."""

import functools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.preprocess.grabcut import grabcut, path_cost
from animate124.preprocess.photo import read_photo
from animate124.preprocess.subject import coverage
from animate124.toyworld.characters import make_character
from animate124.toyworld.motions import animate
from animate124.toyworld.ray_tracing import render
from animate124.toyworld.subject import write_subject

from photos import PANDA, alpha_mask, iou, run


def test_grabcut_finds_a_toy_where_it_stands(tmp_path):
    truth = write_subject(tmp_path / "truth", "fox", size=256)
    photo = Path(shutil.copy(truth["photo"], tmp_path))
    assert run(photo, "--background", "grabcut", "--dont_recenter", "--size", 256) == 0
    assert iou(alpha_mask(tmp_path / "_rgba.png"), alpha_mask(truth["cut-out"])) > 0.95


def test_pale_parts_stay_where_the_background_has_one_colour():
    photo = np.asarray(read_photo(PANDA / "image.png"))
    assert iou(grabcut(photo) > 0.5, alpha_mask(PANDA / "_rgba.png")) > 0.98


def shaded_wall(side):
    """Light grey that darkens downwards and to the sides: [H W 3]."""
    y, x = np.mgrid[0:side, 0:side] / side
    return (0.86 - 0.25 * y - 0.1 * (x - 0.3) ** 2)[..., None] * [0.9, 0.95, 1.0]


def busy_scene(side):
    """Coloured clouds of three sizes: [H W 3]."""
    random = np.random.default_rng(0)
    layers = [
        cv2.resize(random.random((n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC) / weight
        for n, weight in ((4, 1), (9, 2), (20, 4))
    ]
    return 0.15 + 0.6 * cv2.normalize(sum(layers), None, 0, 1, cv2.NORM_MINMAX)


@functools.cache
def photo_before(species, background):
    """A toy's grainy photo before a background, and its true mask."""
    scene = animate(make_character(species), "still", torch.zeros(1))
    seen = render(scene, Cameras.of().batch(512, 512), supersample=2)
    rgb, alpha = seen["rgb"][0].numpy(), seen["alpha"][0].numpy()
    picture = rgb - (1 - alpha) * (1 - background(512))
    picture += np.random.default_rng(1).normal(0, 0.012, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), alpha[..., 0] > 0.5


@pytest.mark.parametrize(
    ("species", "background", "least"),
    [("fox", shaded_wall, 0.95), ("frog", shaded_wall, 0.88), ("panda", busy_scene, 0.95)],
)
def test_grabcut_before_a_shaded_wall_and_a_busy_scene(species, background, least):
    photo, mask = photo_before(species, background)
    assert iou(grabcut(photo) > 0.5, mask) > least


@pytest.mark.parametrize("side", ["right", "left", "bottom"])
def test_a_subject_that_the_border_cuts_off_is_found_and_said_to_be_cut(side):
    photo, mask = photo_before("panda", busy_scene)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    y, x = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    part = {"right": np.s_[:, : x + 20], "left": np.s_[:, x - 20 :], "bottom": np.s_[: y + 30]}
    alpha = grabcut(photo[part[side]])
    assert iou(alpha > 0.5, mask[part[side]]) > 0.85
    assert side in coverage(alpha).partition("cut off at the")[2]


def test_paths_cost_nothing_over_a_gradient_and_a_jump_at_an_outline():
    lab = np.tile(np.linspace(0, 90, 60, dtype=np.float32)[:, None, None], (1, 60, 3))
    lab[20:40, 20:40, 0] += 50  # a closed region
    source = np.zeros((60, 60), bool)
    source[0] = True
    cost = path_cost(lab, source)
    assert cost[:19].max() == 0 and cost[-1].max() == 0
    assert cost[25:35, 25:35].min() > 40
