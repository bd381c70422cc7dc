"""From a photo to a cut-out."""

import shutil
from pathlib import Path

import animate124
import numpy as np
import pytest
from animate124 import image_preprocess
from animate124.toyworld.subject import write_subject
from PIL import Image

ROOT = Path(animate124.__file__).parent
PANDA = ROOT / "load" / "toy-panda"
SUBJECTS = ROOT.parent / "shared" / "subjects"


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def alpha_mask(path):
    return np.asarray(Image.open(path))[..., 3] > 127


def run(*arguments):
    return image_preprocess.main([str(a) for a in arguments])


def test_grabcut_finds_a_toy_where_it_stands(tmp_path):
    truth = write_subject(tmp_path / "truth", "fox", size=256)
    photo = Path(shutil.copy(truth["photo"], tmp_path))
    assert run(photo, "--background", "grabcut", "--dont_recenter", "--size", 256) == 0
    assert iou(alpha_mask(tmp_path / "_rgba.png"), alpha_mask(truth["cut-out"])) > 0.95


def test_pale_parts_stay_where_the_background_has_one_colour():
    photo = np.asarray(image_preprocess.read_photo(PANDA / "image.png"))
    assert iou(image_preprocess.grabcut(photo) > 0.5, alpha_mask(PANDA / "_rgba.png")) > 0.98


@pytest.mark.parametrize(
    ("subject", "least"), [("fox-game", 0.88), ("tiger-guitar", 0.93), ("panda-dance", 0.5)]
)
def test_grabcut_on_pictures_with_a_known_mask(subject, least):
    if not SUBJECTS.exists():
        pytest.skip("shared/subjects isn't there")
    photo = image_preprocess.read_photo(SUBJECTS / subject / "image.jpg")
    mask = image_preprocess.grabcut(np.asarray(photo)) > 0.5
    assert iou(mask, alpha_mask(SUBJECTS / subject / "_rgba.png")) > least


@pytest.mark.parametrize("border_ratio", [0.0, 0.25])
def test_recentring_leaves_the_margin_that_was_asked_for(border_ratio):
    picture = np.zeros((40, 60, 4), np.uint8)
    picture[5:25, 30:40] = 255  # 20 high, 10 wide
    out = np.asarray(image_preprocess.recentre(Image.fromarray(picture), 80, border_ratio))
    rows, columns = np.nonzero(out[..., 3] > 127)
    assert np.ptp(rows) + 1 == pytest.approx(80 * (1 - border_ratio), abs=1)
    assert rows.min() + rows.max() == pytest.approx(79, abs=1)
    assert columns.min() + columns.max() == pytest.approx(79, abs=1)
    assert (out[rows, columns, :3] > 250).all()  # no dark seam from the transparent surroundings


def test_exif_orientation_and_16_bit_are_read_as_they_are_meant(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert image_preprocess.read_photo(tmp_path / "turned.jpg").size == (20, 40)
    Image.fromarray(np.full((20, 20), 32896, np.uint16)).save(tmp_path / "deep.png")
    deep = np.asarray(image_preprocess.read_photo(tmp_path / "deep.png"))
    assert deep.shape == (20, 20, 3) and (deep == 128).all()


def test_normals_of_a_slope_lean_away_from_it():
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))  # nearer to the right
    normal = image_preprocess.normals_from_depth(depth, np.ones((64, 64), bool))[32, 32]
    assert normal[0] == pytest.approx(-0.5 / np.hypot(0.5, 1), abs=0.02) and abs(normal[1]) < 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "There is no image"),
        (lambda p: p.write_text("no image"), "can't be read"),
        (lambda p: Image.new("RGB", (8, 8)).save(p), "the least"),
        (lambda p: Image.new("RGB", (64, 64), "gray").save(p), "covers 0.0 %"),
    ],
)
def test_bad_photos_end_with_what_to_try(tmp_path, capsys, make, words):
    photo = tmp_path / "photo.png"
    make(photo)
    assert run(photo, "--background", "grabcut") == 1
    assert words in capsys.readouterr().err


def test_the_input_is_never_overwritten(tmp_path, capsys):
    photo = Path(shutil.copy(PANDA / "_rgba.png", tmp_path))
    before = photo.read_bytes()
    assert run(photo) == 1
    assert "overwrite its own input" in capsys.readouterr().err
    assert photo.read_bytes() == before
