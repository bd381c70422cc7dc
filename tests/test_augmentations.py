"""Training pictures: files -> squares on white -> varied copies."""

import numpy as np
import pytest
import torch
from animate124.textual_inversion.augmentations import (
    GREY,
    TrainingPictures,
    augment,
    colour_jitter,
    image_files,
    square_picture,
    warp,
)
from PIL import Image


def random_picture(side, seed=0):
    return np.random.default_rng(seed).random((side, side, 3), np.float32)


def test_a_window_of_zoom_1_is_the_picture():
    picture = random_picture(16)
    np.testing.assert_allclose(warp(picture, 16, 0.0, 1.0, (0.3, -1)), picture, atol=1e-6)


def test_a_quarter_turn_is_numpys():
    picture = random_picture(16)
    turned = warp(picture, 16, np.pi / 2, 1.0, (0, 0))
    assert any(np.allclose(turned, np.rot90(picture, k), atol=1e-4) for k in (1, 3))


@pytest.mark.parametrize("angle", [0.0, 0.17, -0.1])
@pytest.mark.parametrize("shift", [(1, 1), (-1, 1), (0.4, -1)])
def test_a_turned_window_stays_filled(angle, shift):
    # whatever is taken from inside a ramp is a ramp; its continuation outside is none
    side = 64
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, side, dtype=np.float32)[:, None], (side, side))
    ramp = np.ascontiguousarray(np.stack([ramp, ramp.T, ramp], axis=-1))
    seen = warp(ramp, 48, angle, 0.9, shift)
    for axis in (0, 1):
        assert np.abs(np.diff(seen, n=2, axis=axis)).max() < 2e-3  # cv2 places samples to 1/32 px
    assert seen[..., 0].max() - seen[..., 0].min() > 0.4


def test_a_window_above_zoom_1_continues_the_border():
    picture = np.zeros((32, 32, 3), np.float32)
    picture[8:24, 8:24] = 1
    seen = warp(picture, 32, 0.0, 1.15, (1, 1))
    assert seen[..., 0].sum() == pytest.approx(256 / 1.15**2, rel=0.05)
    assert seen[[0, -1]].max() == 0


def test_jitter_of_strength_0_changes_nothing():
    picture = random_picture(8)
    same = colour_jitter(picture, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(same, picture, atol=1e-5)


def test_jitter_keeps_grey_grey_and_black_black():
    grey = np.full((4, 4, 3), 0.5, np.float32)
    grey[:2] = 0
    out = colour_jitter(grey, 0.04, np.random.default_rng(0))
    assert np.ptp(out, axis=-1).max() < 1e-5
    assert out[2:].min() == pytest.approx(0.5, abs=0.05)
    assert out[:2].max() < 0.03  # contrast moves it towards the mean


def test_how_often_each_augmentation_comes():
    picture = random_picture(20)
    picture[:, :10] *= 0.3  # the mirror image is told by its bright side
    dice = np.random.default_rng(1)
    copies = [augment(picture, 16, dice) for _ in range(2000)]
    grey = np.mean([np.ptp(x, axis=-1).max() < 1e-5 for x in copies])
    flipped = np.mean([(x @ GREY)[:, :8].mean() > (x @ GREY)[:, 8:].mean() for x in copies])
    assert grey == pytest.approx(0.1, abs=0.025)  # 3.7 standard deviations
    assert flipped == pytest.approx(0.5, abs=0.045)
    assert min(x.min() for x in copies) >= 0 and max(x.max() for x in copies) <= 1


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def pictures(files, **options):
    options = {"center_crop": False, "augmented": True, "repeats": 3, "seed": 5} | options
    return TrainingPictures(files, 16, **options)


def test_copies_follow_from_seed_and_index(tmp_path):
    file = save(tmp_path / "a.png", (random_picture(40) * 255).astype(np.uint8))
    one, other = pictures([file, file]), pictures([file, file])
    loader = torch.utils.data.DataLoader(other, batch_size=1, num_workers=2)
    assert len(one) == 6
    for a, b in zip([one[i] for i in range(6)], loader, strict=True):
        torch.testing.assert_close(a, b[0], rtol=0, atol=0)
    assert not torch.equal(one[0], one[2])  # the same picture, another copy
    assert not torch.equal(one[0], pictures([file], seed=6)[0])


def test_without_augmentation_there_is_the_picture_and_its_mirror_image(tmp_path):
    file = save(tmp_path / "a.png", (random_picture(16) * 255).astype(np.uint8))
    both = pictures([file], augmented=False)
    assert len(both) == 2
    torch.testing.assert_close(both[1], both[0].flip(-1), rtol=0, atol=0)


def test_transparency_becomes_white_whatever_colour_it_hides(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[4:12, 4:12] = (200, 100, 50, 255)
    square = square_picture(save(tmp_path / "a.png", rgba), False, 16)
    assert square[0, 0].tolist() == [1, 1, 1]
    np.testing.assert_allclose(square[8, 8] * 255, [200, 100, 50], atol=0.5)


def test_a_wide_picture_is_padded_or_cropped_never_stretched(tmp_path):
    wide = np.full((20, 40, 3), 90, np.uint8)
    wide[:, 18:22] = 0  # 4 of 40 wide
    file = save(tmp_path / "a.png", wide)
    padded = square_picture(file, False, 40)
    assert padded[:10].min() == 1 and padded[30:].min() == 1
    assert (padded[20] < 0.1).all(-1).sum() == 4
    cropped = square_picture(file, True, 40)
    assert cropped.max() < 0.5
    assert (cropped[20] < 0.2).all(-1).sum() == pytest.approx(8, abs=1)


def test_pictures_are_read_upright(tmp_path):
    lying = np.full((20, 40, 3), 255, np.uint8)
    lying[:, :20] = 0
    image = Image.fromarray(lying)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = square_picture(tmp_path / "a.png", True, 20)
    assert upright[2].max() < 0.1 and upright[-3].min() > 0.9


def test_a_folder_gives_its_images_in_order_and_only_cut_outs_where_there_are_some(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png"):
        save(tmp_path / name, np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "_caption.txt").write_text("a panda")
    assert [f.name for f in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    for name in ("_rgba.png", "_depth.png"):
        save(tmp_path / name, np.zeros((16, 16, 4), np.uint8))
    assert [f.name for f in image_files(tmp_path)] == ["_rgba.png"]
    assert image_files(tmp_path / "a.jpg") == [tmp_path / "a.jpg"]
