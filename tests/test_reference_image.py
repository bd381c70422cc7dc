"""The reference image: colours at the subject's border, mask, and every way to give a bad one."""

import cv2
import numpy as np
import pytest
import torch
from animate124.data.reference_image import (
    load_rgba,
    on_white,
    pad_to_aspect,
    reference,
    reference_on_white,
    resize,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

law = settings(deadline=None, max_examples=25)


def disc(height=64, width=64, colour=(255, 0, 0), hidden=(0, 255, 0), radius=0.35):
    """A disc of `colour` in the centre; `hidden` is the colour of its transparent surroundings."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(y - height / 2, x - width / 2) < radius * min(height, width)
    rgba = np.empty((height, width, 4), np.uint8)
    rgba[..., :3] = np.where(inside[..., None], colour, hidden)
    rgba[..., 3] = 255 * inside
    return rgba


@pytest.fixture
def save(tmp_path):
    def save(array_or_image, name="_rgba.png", **options):
        image = array_or_image
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


@law
@given(st.integers(5, 90), st.integers(5, 90))
def test_hidden_colours_never_show_at_the_border(height, width):
    """A red disc over transparent green: at every size all that shows is between red and white."""
    rgba = resize(torch.from_numpy(disc()).float() / 255, height, width)
    subject = rgba[..., 3] > 1e-3
    red = torch.tensor([1.0, 0, 0]).expand(int(subject.sum()), 3)
    torch.testing.assert_close(rgba[subject][:, :3], red, atol=1e-4, rtol=0)
    r, g, b = on_white(rgba).unbind(-1)
    torch.testing.assert_close(r, torch.ones_like(r), atol=1e-4, rtol=0)
    torch.testing.assert_close(g, b, atol=1e-4, rtol=0)
    torch.testing.assert_close(g, 1 - rgba[..., 3], atol=1e-4, rtol=0)


@law
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
def test_padding_brings_the_aspect_and_keeps_every_pixel_in_the_centre(h, w, height, width):
    rgba = torch.rand(h, w, 4)
    padded = pad_to_aspect(rgba, height, width)
    H, W = padded.shape[:2]
    assert (h == H) or (w == W)  # one direction only
    assert abs(W * height - H * width) <= max(height, width)  # right to a pixel
    top, left = (H - h) // 2, (W - w) // 2
    assert torch.equal(padded[top : top + h, left : left + w], rgba)
    assert padded[..., 3].sum() == pytest.approx(rgba[..., 3].sum().item(), rel=1e-4)


def test_resizing_keeps_area_and_is_the_identity_at_the_same_size():
    rgba = torch.from_numpy(disc(96, 96)).float() / 255
    torch.testing.assert_close(resize(rgba, 96, 96)[..., 3], rgba[..., 3])
    for size in (24, 50, 200):
        alpha = resize(rgba, size, size)[..., 3]
        assert alpha.mean().item() == pytest.approx(rgba[..., 3].mean().item(), rel=0.01)


def test_shrinking_agrees_with_opencv_to_a_filters_difference():
    """cv2's INTER_AREA is a box, not a triangle: only edges differ."""
    rgba = disc(128, 128).astype(np.float32) / 255
    want = cv2.resize(rgba[..., 3], (32, 32), interpolation=cv2.INTER_AREA)
    got = resize(torch.from_numpy(rgba), 32, 32)[..., 3].numpy()
    assert np.abs(want - got).max() < 0.2
    assert np.abs(want - got).mean() < 0.01


def test_reference_is_on_white_with_a_binary_mask(save):
    rgb, mask = reference(save(disc()), 32, 32)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(rgb[0, 0], torch.ones(3))
    torch.testing.assert_close(rgb[16, 16], torch.tensor([1.0, 0, 0]))
    assert mask.mean().item() == pytest.approx(np.pi * 0.35**2, rel=0.05)


@pytest.mark.parametrize("alpha, inside", [(127, 0.0), (128, 1.0)])
def test_mask_begins_above_half_alpha(save, alpha, inside):
    """8 bits can't hold 0.5: 127 is below it, 128 above."""
    image = disc()
    image[:16, :16, 3] = alpha
    _, mask = reference(save(image), 64, 64)
    assert (mask[:16, :16] == inside).all()


def test_an_image_of_another_aspect_is_centred_and_not_stretched(save):
    _, mask = reference(save(disc(40, 80)), 32, 32)
    rows, columns = torch.nonzero(mask[..., 0]).unbind(-1)
    extent_y, extent_x = rows.max() - rows.min(), columns.max() - columns.min()
    assert abs(extent_y - extent_x) <= 1
    assert (
        abs((rows.max() + rows.min()) - 31) <= 1 and abs((columns.max() + columns.min()) - 31) <= 1
    )
    wide, _ = reference(save(disc(40, 80)), 16, 32)
    assert wide.shape == (16, 32, 3)


def test_square_picture_for_a_model(save):
    picture = reference_on_white(save(disc(40, 80)), 20)
    assert picture.shape == (1, 3, 20, 20)
    rgb, _ = reference(save(disc(40, 80)), 20, 20)
    torch.testing.assert_close(picture[0].permute(1, 2, 0), rgb)


def test_kinds_of_files_with_transparency_read_alike(save):
    rgba = disc()
    want = load_rgba(save(rgba))
    visible = want[..., 3:] > 0
    image = Image.fromarray(rgba)
    paths = {
        "webp": save(image, "lossless.webp", lossless=True),
        "tiff": save(image, "image.tiff"),
        "palette": save(image.quantize(16), "palette.png"),
    }
    deep = rgba[..., [2, 1, 0, 3]].astype(np.uint16) * 257  # OpenCV's order
    paths["16 bit"] = str(save(rgba, "deep.png"))
    assert cv2.imwrite(paths["16 bit"], deep)
    keyed = Image.fromarray(np.where(rgba[..., 3:] > 0, rgba[..., :3], 7).astype(np.uint8))
    paths["colour key"] = save(keyed, "keyed.png", transparency=(7, 7, 7))
    for kind, path in paths.items():
        got = load_rgba(path)
        assert torch.equal(got[..., 3], want[..., 3]), kind
        torch.testing.assert_close(got * visible, want * visible, atol=0.02, rtol=0, msg=kind)


def test_grey_with_alpha_is_read_as_grey(save):
    rgba = disc(colour=(90, 90, 90))
    got = load_rgba(save(Image.fromarray(rgba).convert("LA"), "grey.png"))
    torch.testing.assert_close(got[32, 32], torch.tensor([90.0, 90, 90, 255]) / 255)


def test_exif_orientation_is_applied(save):
    rgba = disc(40, 80)
    rgba[:20] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = load_rgba(save(Image.fromarray(rgba), "turned.png", exif=exif))
    assert torch.equal(turned, torch.from_numpy(np.rot90(rgba, -1).copy()).float() / 255)


def test_missing_image_says_what_to_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist.*image_path="):
        load_rgba(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="is a folder, not an image file"):
        load_rgba(tmp_path)


def test_unset_path_says_what_to_pass():
    with pytest.raises(
        ValueError, match=r"No reference image is given: pass data\.image\.image_path="
    ):
        load_rgba("")


def test_unreadable_image_says_so(tmp_path, save):
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"junk\.png can't be read"):
        load_rgba(junk)
    whole = tmp_path / "_rgba.png"
    save(np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8))
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.png can't be read"):
        load_rgba(half)


@pytest.mark.parametrize("mode, name", [("RGB", "photo.jpg"), ("RGB", "photo.png"), ("L", "g.png")])
def test_image_without_alpha_names_the_preprocessing(save, mode, name):
    path = save(Image.fromarray(disc()).convert(mode), name)
    with pytest.raises(ValueError, match=r"no alpha channel.*image_preprocess\.py.*RGBA PNG"):
        load_rgba(path)


def test_empty_mask_is_refused(save):
    image = disc()
    image[..., 3] //= 3
    with pytest.raises(ValueError, match=r"mask of .* is empty"):
        load_rgba(save(image))


OPAQUE = {
    "255 everywhere": lambda rgba: Image.fromarray(rgba[..., :3]).convert("RGBA"),
    "grey": lambda rgba: Image.fromarray(rgba[..., :3]).convert("LA"),
    "128 everywhere": lambda rgba: Image.fromarray(
        np.dstack([rgba[..., :3], rgba[..., 3] * 0 + 128])
    ),
    "rounded corners": lambda rgba: Image.fromarray(np.dstack([rgba[..., :3], corners(rgba)])),
}


def corners(rgba):
    alpha = np.full(rgba.shape[:2], 255, np.uint8)
    alpha[:3, :3] = alpha[-3:, -3:] = 0
    return alpha


@pytest.mark.parametrize("kind", OPAQUE)
def test_an_alpha_that_is_opaque_everywhere_is_no_mask(save, kind):
    with pytest.raises(ValueError, match=r"is opaque.*slab.*image_preprocess\.py"):
        load_rgba(save(OPAQUE[kind](disc()), "photo.png"))


def test_a_palettes_unused_transparent_colour_is_no_mask(save):
    picture = Image.fromarray(disc()[..., :3]).quantize(8)
    with pytest.raises(ValueError, match=r"100 % of .* is opaque"):
        load_rgba(save(picture, "palette.png", transparency=200))


def test_one_opaque_pixel_is_no_subject(save):
    image = disc(radius=0.0)
    image[3, 3, 3] = 255
    with pytest.raises(ValueError, match=r"nearly empty: 1 of its pixels .*crop"):
        load_rgba(save(image))


def test_a_subject_that_vanishes_at_the_renders_size_is_refused(save):
    image = disc(radius=0.0)
    image[::8, ::8, 3] = 255
    with pytest.raises(ValueError, match=r"empty at 8 x 8: raise data\.image\.height"):
        reference(save(image), 8, 8)


def test_a_git_lfs_pointer_is_called_one(tmp_path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"a\.png' is a Git LFS pointer.*git lfs pull"):
        load_rgba(tmp_path / "a.png")
