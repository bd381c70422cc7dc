"""The command: a photo's results beside it, and what it says where there are none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from animate124.preprocess.command import preprocess
from animate124.preprocess.errors import PreprocessError
from animate124.preprocess.framing import recentre
from PIL import Image

from photos import PANDA, ROOT, alpha_mask, on_disk, run


@pytest.mark.parametrize("border_ratio", [0.0, 0.25])
def test_recentring_leaves_the_margin_that_was_asked_for(border_ratio):
    picture = np.zeros((40, 60, 4), np.uint8)
    picture[5:25, 30:40] = 255  # 20 high, 10 wide
    out = np.asarray(recentre(Image.fromarray(picture), 80, border_ratio))
    rows, columns = np.nonzero(out[..., 3] > 127)
    assert np.ptp(rows) + 1 == pytest.approx(80 * (1 - border_ratio), abs=1)
    assert rows.min() + rows.max() == pytest.approx(79, abs=1)
    assert columns.min() + columns.max() == pytest.approx(79, abs=1)
    assert (out[rows, columns, :3] > 250).all()  # no dark seam from the transparent surroundings


def test_size_and_margin_are_those_asked_for(photo):
    assert run(photo, "--background", "grabcut", "--size", 96, "--border_ratio", 0.5) == 0
    mask = alpha_mask(photo.with_name("_rgba.png"))
    assert mask.shape == (96, 96)
    assert max(np.ptp(i) + 1 for i in np.nonzero(mask)) == pytest.approx(48, abs=1)


@pytest.mark.parametrize(
    "network",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_huge_photo_without_any_model_takes_little_memory_and_one_line_a_step(tmp_path, network):
    photo = tmp_path / "photo.jpg"
    small = Image.open(PANDA / "image.png").convert("L")
    small.resize((12000, 9000), Image.Resampling.NEAREST).save(photo, quality=50)
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([x for x in open('/proc/self/status') if 'VmHWM' in x][0].split()[1])"
    )
    command = [sys.executable, "-c", script, str(ROOT / "image_preprocess.py"), str(photo)]
    options = ["--background", "grabcut", "--size", "64", "--need_caption"]
    environment = {**os.environ, **network, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    *lines, peak = done.stdout.splitlines()
    starts = ["background: removed by grabcut", "wrote", "depth: skipped", "caption: skipped"]
    assert len(lines) == 4 and all(x.startswith(y) for x, y in zip(lines, starts, strict=True))
    assert {"_rgba.png", "photo.jpg"} == on_disk(tmp_path) - {"home"}
    assert int(peak) < 600_000  # kB; the picture alone has 108 million pixels


def one_opaque_pixel(path):
    image = Image.new("RGBA", (64, 64))
    image.putpixel((20, 30), (9, 9, 9, 255))
    image.save(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "There is no image"),
        (lambda p: p.write_text("no image"), "can't be read"),
        (lambda p: Image.new("RGB", (8, 8)).save(p), "the least"),
        (lambda p: Image.new("RGB", (300, 16)).save(p), "found no subject"),
        (lambda p: Image.new("RGB", (16, 4000)).save(p), "the longer side is 2048"),
        (lambda p: Image.new("RGB", (64, 64), "gray").save(p), "found no subject"),
        (lambda p: Image.new("RGBA", (64, 64)).save(p), "transparent everywhere"),
        (lambda p: Image.new("RGBA", (64, 64), (9, 9, 9, 99)).save(p), "no opaque pixel"),
        (lambda p: Image.new("RGBA", (64, 64), (9, 9, 9, 128)).save(p), "found no subject"),
        (lambda p: one_opaque_pixel(p), "1 pixel is opaque"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes((PANDA / "image.png").read_bytes()[:4000]), "truncated"),
        (lambda p: Image.new("1", (15000, 12000)).save(p), "million pixels"),
    ],
)
def test_bad_photos_end_with_what_to_try(tmp_path, capsys, make, words):
    photo = tmp_path / "photo.png"
    make(photo)
    before = on_disk(tmp_path)
    assert run(photo, "--background", "grabcut") == 1
    assert words in capsys.readouterr().err
    assert on_disk(tmp_path) == before


def test_the_input_is_never_overwritten(tmp_path, capsys):
    photo = Path(shutil.copy(PANDA / "_rgba.png", tmp_path))
    before = photo.read_bytes()
    assert run(photo) == 1
    assert "overwrite its own input" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "values", "words"),
    [
        ("--size", ["8", "1000000", "1.5", "1e9", "-1", "0", "nan", ""], "16 to 8192"),
        ("--border_ratio", ["1", "2", "-1", "nan", "inf", "x"], "0 or more and below 1"),
        ("--background", ["grabcutt", ""], "grabcut"),
        ("--depth_model", ["", " "], "it is empty"),
        ("image", [""], "it is empty"),
    ],
)
def test_options_out_of_range_say_what_would_do(photo, capsys, option, values, words):
    for value in values:
        with pytest.raises(SystemExit, match="2"):
            run(*([value] if option == "image" else [photo, f"{option}={value}"]))
        err = capsys.readouterr().err
        assert option in err and words in err
    assert on_disk(photo.parent) == {"image.png"}
    for size, margin in ((8, 0.2), (10**9, 0.2), (64, 1.0), (64, float("nan"))):
        with pytest.raises(PreprocessError, match=r"--(size|border_ratio)"):
            preprocess(photo, size=size, border_ratio=margin)


def test_results_that_cannot_be_written_are_named(photo, capsys):
    photo.with_name("_rgba.png").mkdir()
    assert run(photo, "--background", "grabcut") == 1
    err = capsys.readouterr().err
    assert "_rgba.png can't be written" in err and "copy it into a folder" in err
    assert on_disk(photo.parent) == {"image.png", "_rgba.png"}


def test_a_folder_without_write_permission_is_named(photo, capsys):
    photo.parent.chmod(0o500)
    if os.access(photo.parent, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert run(photo, "--background", "grabcut") == 1
    assert "can't be written (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "there is no"),
        (lambda p: Image.new("RGB", (64, 64)).save(p), "no transparent background"),
        (lambda p: Image.new("RGBA", (64, 64)).save(p), "no opaque pixel"),
        (lambda p: Image.new("RGBA", (64, 64), "red").save(p), "no transparent background"),
        (one_opaque_pixel, "1 pixel is opaque"),
    ],
)
def test_an_existing_cut_out_has_to_be_one(photo, capsys, make, words):
    make(photo.with_name("_rgba.png"))
    assert run(photo, "--use_existing_background") == 1
    assert words in capsys.readouterr().err
