"""The example subject: the files are what the reference camera sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.toyworld.characters import make_character
from animate124.toyworld.motions import animate
from animate124.toyworld.ray_tracing import render
from animate124.toyworld.subject import BACKGROUND, main
from PIL import Image

EXAMPLE = Path(__file__).parent.parent / "load" / "toy-panda"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64) / 255


def reference_view(scene, size: int, supersample: int) -> tuple[np.ndarray, np.ndarray]:
    """rgb on white and alpha, through elevation 0, azimuth 0, distance 2.5, fov 40."""
    picture = render(scene, Cameras.of(0, 0, 2.5, 40).batch(size, size), supersample=supersample)
    return picture["rgb"][0].double().numpy(), picture["alpha"][0].double().numpy()


def test_the_files_are_the_reference_cameras_render(tmp_path, capsys):
    options = ["--species", "fox", "--seed", "7", "--motion", "jump", "--time", "0.5"]
    main([*options, "--size", "48", "--out", str(tmp_path / "new" / "fox")])
    photo, cut_out = (tmp_path / "new" / "fox" / name for name in ("image.png", "_rgba.png"))
    scene = animate(make_character("fox", 7), "jump", torch.tensor([0.5]))
    rgb, alpha = reference_view(scene, 48, 4)
    rgba = pixels(cut_out)
    assert rgba.shape == (48, 48, 4)
    np.testing.assert_allclose(rgba[..., 3:], alpha, atol=0.5 / 255 + 1e-6)
    on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    np.testing.assert_allclose(on_white, rgb, atol=1.01 / 255)
    assert Image.open(photo).mode == "RGB"
    on_wall = rgb - (1 - alpha) * (1 - np.array(BACKGROUND))
    np.testing.assert_allclose(pixels(photo), on_wall, atol=0.5 / 255 + 1e-6)
    said = capsys.readouterr().out
    assert "fox number 7" in said
    assert str(photo) in said
    assert str(cut_out) in said


def test_the_example_in_the_repository_is_the_canonical_panda():
    _, alpha = reference_view(make_character("panda").at_rest(), 512, 1)
    rgb_64, alpha_64 = reference_view(make_character("panda").at_rest(), 64, 8)
    rgba = pixels(EXAMPLE / "_rgba.png")
    assert ((rgba[..., 3:] > 0.5) == (alpha > 0.5)).mean() > 0.999
    on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]

    def pooled(image: np.ndarray) -> np.ndarray:
        return image.reshape(64, 8, 64, 8, -1).mean(axis=(1, 3))

    np.testing.assert_allclose(pooled(rgba[..., 3:]), alpha_64, atol=0.04)
    np.testing.assert_allclose(pooled(on_white), rgb_64, atol=0.04)
    assert Image.open(EXAMPLE / "image.png").mode == "RGB"
    for name in ("image.png", "_rgba.png"):
        assert (EXAMPLE / name).stat().st_size < 200_000


@pytest.mark.parametrize("bad", [["--species", "pandas"], ["--size", "0"], ["--motion", "fly"]])
def test_bad_options_end_with_the_usage(bad, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *bad])
    assert bad[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
