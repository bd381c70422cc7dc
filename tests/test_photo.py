"""Every kind of file is read as it is meant."""

import cv2
import numpy as np
import pytest
from animate124.preprocess.errors import PreprocessError
from animate124.preprocess.photo import read_photo
from PIL import Image

from photos import PANDA, saved


def deep(path, values):
    cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)
    return path


def grey(rgb):
    return np.asarray(Image.fromarray(rgb).convert("L"))


KINDS = {  # name -> writer(path, 8-bit picture), what is to be read
    "grey.png": (lambda p, a: saved(p, Image.fromarray(grey(a))), grey),
    "grey.jpg": (lambda p, a: saved(p, Image.fromarray(grey(a)), quality=95), grey),
    "grey16.png": (lambda p, a: deep(p, grey(a).astype(np.uint16) * 257), grey),
    "grey16.tif": (lambda p, a: deep(p, grey(a).astype(np.uint16) * 257), grey),
    "rgb16.png": (lambda p, a: deep(p, a.astype(np.uint16) * 257), None),
    "rgb16.tif": (lambda p, a: deep(p, a.astype(np.uint16) * 257), None),
    "palette.png": (lambda p, a: saved(p, Image.fromarray(a).quantize(256)), None),
    "palette.gif": (lambda p, a: saved(p, Image.fromarray(a).quantize(256)), None),
    "cmyk.jpg": (lambda p, a: saved(p, Image.fromarray(a).convert("CMYK"), quality=95), None),
    "opaque.webp": (lambda p, a: saved(p, Image.fromarray(a).convert("RGBA"), lossless=True), None),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("longest", [2048, 32])
def test_every_kind_of_file_is_read_as_it_is_meant(tmp_path, name, longest):
    original = np.asarray(Image.open(PANDA / "image.png").convert("RGB").resize((96, 64)))
    put, meant = KINDS[name]
    read = read_photo(put(tmp_path / name, original), longest)
    assert read.mode == "RGB" and read.size == ((96, 64) if longest == 2048 else (32, 21))
    expected = Image.fromarray(original if meant is None else meant(original)).convert("RGB")
    expected = np.asarray(expected.resize(read.size, Image.Resampling.LANCZOS), int)
    difference = np.abs(expected - np.asarray(read))
    assert difference.mean() < 3


def test_float_pictures_are_scaled_by_their_largest_value(tmp_path):
    values = np.linspace(0, 4, 32 * 32, dtype=np.float32).reshape(32, 32)
    read = read_photo(deep(tmp_path / "float.tif", values))
    assert np.abs(np.asarray(read)[..., 0] - values * 255 / 4).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_kept_in_every_form(tmp_path, mode):
    image = Image.open(PANDA / "_rgba.png").resize((64, 64), Image.Resampling.NEAREST)
    alpha = np.asarray(image.getchannel("A")) > 127
    if mode == "P":
        image = Image.fromarray(np.where(alpha, 7, 3).astype(np.uint8)).convert("P")
        image.save(tmp_path / "a.png", transparency=3)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    read = read_photo(tmp_path / "a.png")
    assert read.mode == "RGBA" and ((np.asarray(read)[..., 3] > 127) == alpha).all()


STORED = {  # EXIF orientation -> what a camera does to the upright picture
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("jpg", "RGB"), ("jpg", "L"), ("png", "RGB"), ("png", "P"), ("webp", "RGB"), ("tif", "RGB")],
)
def test_pictures_are_turned_upright(tmp_path, suffix, mode):
    upright = Image.open(PANDA / "image.png").convert("RGB").resize((48, 32)).convert(mode)
    for orientation, move in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        stored = upright if move is None else upright.transpose(move)
        stored.save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
        read = np.asarray(read_photo(path), int)
        assert read.shape == (32, 48, 3)
        assert np.abs(read - np.asarray(upright.convert("RGB"))).mean() < 3


def test_a_git_lfs_pointer_is_told_as_one(tmp_path):
    pointer = tmp_path / "photo.jpg"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(PreprocessError, match=r"Git LFS pointer.*git lfs pull"):
        read_photo(pointer)
