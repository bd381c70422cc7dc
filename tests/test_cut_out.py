"""Which program removes the background, what is a cut-out already, and what is said of it."""

import importlib
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from animate124.preprocess.photo import read_photo
from animate124.preprocess.subject import coverage
from PIL import Image

from photos import PANDA, alpha_mask, on_disk, pixels, run


@pytest.mark.parametrize("options", [["--dont_recenter"], []])
def test_an_image_that_is_cut_out_already_keeps_its_alpha(tmp_path, options):
    photo = Path(shutil.copy(PANDA / "_rgba.png", tmp_path / "cut.png"))
    assert run(photo, "--size", pixels(photo).shape[0], *options) == 0
    alpha = read_photo(photo).getchannel("A")
    kept = alpha_mask(tmp_path / "_rgba.png")
    if options:
        assert (kept == (np.asarray(alpha) > 127)).all()
    else:
        assert kept.sum() != (np.asarray(alpha) > 127).sum()


STAND_INS = {  # as much of the packages as is called, with their signatures; both return a disc
    "onnxruntime": "",
    "disc": """
import numpy as np
from PIL import Image
def disc(size, radius=0.3):
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    return Image.fromarray((255 * (np.hypot(x, y) < radius)).astype(np.uint8))
""",
    "rembg": """
from disc import disc
def new_session(model_name="bria-rmbg"):
    return model_name
def remove(data, alpha_matting=False, *, session=None, only_mask=False, **kwargs):
    assert session == "u2net" and only_mask
    return disc(data.size, 0.5)
""",
    "backgroundremover": "",
    "backgroundremover.bg": """
import io
from PIL import Image
from disc import disc
def remove(data, model_name="u2net", alpha_matting=False, only_mask=False):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.putalpha(disc(image.size))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getbuffer()
""",
}


@pytest.fixture
def install(monkeypatch, tmp_path_factory):
    """install("rembg", ...): exactly these stand-ins can be imported, whatever is really there."""
    folder = tmp_path_factory.mktemp("packages")
    monkeypatch.syspath_prepend(folder)

    def put(*names, **sources):
        for name in STAND_INS:
            monkeypatch.delitem(sys.modules, name, raising=False)
            if name not in (*names, "disc") and "." not in name:
                monkeypatch.setitem(sys.modules, name, None)  # as if it weren't installed
        for name, source in {**STAND_INS, **sources}.items():
            file = folder / name.split(".")[0] / f"{(name + '.__init__').split('.')[1]}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
        importlib.invalidate_caches()

    yield put
    for name in STAND_INS:
        sys.modules.pop(name, None)


FAILING = {"backgroundremover.bg": "def remove(*a, **k): raise FileNotFoundError('no u2net.pth')"}


FINDS_NOTHING = {"rembg": STAND_INS["rembg"].replace("0.5", "0.0")}


@pytest.mark.parametrize(
    ("there", "asked", "taken", "said"),
    [
        (["backgroundremover", "rembg", "onnxruntime"], "auto", "backgroundremover", ""),
        (["rembg", "onnxruntime"], "auto", "rembg", ""),
        ([], "auto", "grabcut", ""),
        (["backgroundremover", "rembg", "onnxruntime"], "rembg", "rembg", ""),
        (["backgroundremover", "rembg", "onnxruntime"], "grabcut", "grabcut", ""),
        (["rembg"], "auto", "grabcut", "rembg can't run here: it needs onnxruntime"),
    ],
)
def test_which_remover_is_taken(install, photo, capsys, there, asked, taken, said):
    install(*there)
    assert run(photo, "--background", asked) == 0
    out = capsys.readouterr().out
    assert f"removed by {taken};" in out and said in out


def test_a_remover_that_fails_or_finds_nothing_leaves_it_to_the_next(install, photo, capsys):
    install("backgroundremover", "rembg", "onnxruntime", **FAILING, **FINDS_NOTHING)
    assert run(photo) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "background: backgroundremover can't run here: no u2net.pth; trying the next"
    )
    assert lines[1].startswith("background: rembg found no subject")
    assert "removed by grabcut" in lines[2]


@pytest.mark.parametrize(
    ("there", "asked", "sources", "words"),
    [
        ([], "rembg", {}, "rembg isn't installed: pip install 'rembg[cpu]'"),
        ([], "backgroundremover", {}, "pip install 'backgroundremover'"),
        (["rembg"], "rembg", {}, "onnxruntime"),
        (["backgroundremover"], "backgroundremover", FAILING, "no u2net.pth"),
        (["rembg", "onnxruntime"], "rembg", FINDS_NOTHING, "rembg found no subject"),
    ],
)
def test_a_remover_asked_for_by_name_has_to_work(
    install, photo, capsys, there, asked, sources, words
):
    install(*there, **sources)
    assert run(photo, "--background", asked) == 1
    err = capsys.readouterr().err
    assert words in err and "--use_existing_background" in err
    assert on_disk(photo.parent) == {"image.png"}


def test_the_alpha_is_the_removers(install, photo):
    install("rembg", "onnxruntime")
    assert run(photo, "--dont_recenter", "--size", 256) == 0
    mask = alpha_mask(photo.with_name("_rgba.png"))
    assert mask.mean() == pytest.approx(np.pi * 0.5**2 / 4, rel=0.02)


def test_a_few_transparent_pixels_are_no_cut_out(tmp_path, capsys):
    image = Image.open(PANDA / "image.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 9, 9))  # a rounded corner
    image.save(tmp_path / "photo.png")
    assert run(tmp_path / "photo.png", "--background", "grabcut") == 0
    assert "removed by grabcut" in capsys.readouterr().out


OPAQUE = {  # pictures with an alpha that says nothing: name -> how it is saved
    "alpha 255": lambda image, path: image.convert("RGBA").save(path),
    "grey, alpha 255": lambda image, path: image.convert("LA").save(path),
    "alpha 128": lambda image, path: with_alpha(image, 128).save(path),
    "a palette's unused colour": lambda image, path: image.quantize(200).save(
        path, transparency=255
    ),
    "16 bit": lambda image, path: cv2.imwrite(
        str(path), np.asarray(image.convert("RGBA"))[..., [2, 1, 0, 3]].astype(np.uint16) * 257
    ),
}


def with_alpha(image, value):
    image = image.convert("RGB")
    image.putalpha(value)
    return image


@pytest.mark.parametrize("kind", OPAQUE)
def test_an_alpha_that_is_opaque_everywhere_is_no_cut_out(tmp_path, capsys, kind):
    image = Image.open(PANDA / "image.png").convert("RGB").resize((96, 96))
    OPAQUE[kind](image, tmp_path / "photo.png")
    assert run(tmp_path / "photo.png", "--background", "grabcut", "--size", 64) == 0
    out = capsys.readouterr().out
    assert "100 % of the picture is opaque" in out and "removed by grabcut" in out
    assert 0.02 < alpha_mask(tmp_path / "_rgba.png").mean() < 0.7
    read = np.asarray(read_photo(tmp_path / "photo.png"), int)
    wanted = image.convert("L").convert("RGB") if kind.startswith("grey") else image
    assert np.abs(read - np.asarray(wanted)).mean() < 3


def test_a_subject_in_loose_pieces_gets_a_remark_and_one_that_hangs_together_none():
    alpha = np.zeros((100, 100))
    alpha[20:60, 20:60] = 1
    assert "pieces" not in coverage(alpha)
    alpha[70:71, 70:71] = 1  # a speck
    assert "pieces" not in coverage(alpha)
    alpha[70:90, 70:90] = 1  # 400 beside 1600 pixels
    said = coverage(alpha)
    assert "in 2 pieces, 20 % of it outside the largest" in said
    assert "--background" in said and "use_existing_background" in said
