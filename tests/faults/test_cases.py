"""Inputs that once were taken in silence, or failed obscurely: tables, pictures, learned words."""

from pathlib import Path

import pytest
import torch
import values
from animate124.preprocess import command as preprocess
from animate124.pretrained.learned_tokens import read_learned_tokens
from PIL import Image
from safetensors.torch import save_file
from values import PROMPT

ROW = f"ball.png,{PROMPT}\n"


@pytest.fixture(autouse=True)
def desk():
    with values.desk() as folder:
        yield folder


def batch(content, encoding="utf-8"):
    """What a table with this text gets for an answer."""
    Path("scenes.csv").write_bytes(content.encode(encoding))
    return values.dry_run("--batch", "scenes.csv")


@pytest.mark.parametrize(
    "content",
    [
        f"image;prompt\n{ROW.replace(',', ';')}",
        f"image\tprompt\n{ROW.replace(',', chr(9))}",
        f"image,prompt\n{ROW},\n,\n",
        f"image,prompt,fast\n{ROW.strip()},TRUE\n",
    ],
    ids=["semicolons", "tabs", "rows of nothing at the end", "a spreadsheet's TRUE"],
)
def test_tables_as_spreadsheets_write_them_are_read(content):
    got = batch(content)
    assert got.code == 0, got.said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_of_another_encoding_is_read_or_said_how_to_save(encoding):
    got = batch(f"image,prompt,static-prompt\n{ROW.strip()},ein Bär\n", encoding)
    assert got.code == 0 or (got.refused and "UTF-8" in got.message)


@pytest.mark.parametrize(
    ("column", "cells", "named"),
    [
        ("fast", ["TRUE", "perhaps"], "perhaps"),
        ("fast", ["ja", "x", "2"], "2"),
        ("stage2.trainer.max_step", ["5"], "max_steps"),
        ("preset", ["toys"], "toy"),
        ("vram", ["sixteen"], "sixteen"),
        ("stage2.trainer.max_steps", ["5", "many"], "max_steps"),
    ],
)
def test_a_bad_cell_is_named_before_the_first_scene(column, cells, named):
    rows = [f"ball.png,a panda is dancing {n},{cell}\n" for n, cell in enumerate(cells, 1)]
    got = batch(f"image,prompt,{column}\n{''.join(rows)}")
    assert got.refused
    assert named in got.message
    assert "scenes.csv" in got.message
    if named == cells[-1]:
        assert f"row {1 + len(cells)}" in got.message  # as a spreadsheet counts


def opaque(path):
    """A picture with an alpha channel in which nothing is transparent."""
    with Image.open("ball.png") as photo:
        photo.convert("RGBA").save(path)
    return path


def test_an_opaque_rgba_picture_is_no_cut_out():
    from animate124.data.reference_image import reference

    with pytest.raises(ValueError, match=r"opaque\.png"):
        reference(opaque("opaque.png"), 32, 32)


def test_a_picture_of_one_colour_has_no_subject(capsys):
    Image.new("RGB", (64, 64), (250, 250, 250)).save("plain.png")
    assert preprocess.main(["plain.png", "--size", "64"]) == 1
    assert "no subject" in capsys.readouterr().err


def test_learned_words_of_other_programs_are_read():
    vectors = torch.randn(2, 128)
    held = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "panda"}
    torch.save({**held, "step": 1}, "a1111.pt")
    assert torch.equal(*read_learned_tokens("a1111.pt").values(), vectors)


def test_what_is_no_learned_word_is_named_with_a_way_out():
    torch.save({"<panda>": torch.full((128,), float("nan"))}, "nan.bin")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 3819\n"
    Path("pointer.bin").write_text(pointer)
    for path, why in {"nan.bin": "infinity", "pointer.bin": "LFS"}.items():
        with pytest.raises(ValueError, match=why) as error:
            read_learned_tokens(path)
        assert path in str(error.value)
        assert "weights_only" not in str(error.value)


def test_two_encoders_vectors_are_taken_apart(random_priors):
    """SDXL's files hold a word for each of its encoders: one that fits is enough."""
    from animate124.pretrained.embedding_cache import read_texts

    width = 32  # of the random models
    save_file({"clip_l": torch.randn(1, width), "clip_g": torch.randn(1, 1280)}, "sdxl.safetensors")
    learned = read_learned_tokens("sdxl.safetensors")
    embedded = read_texts(str(random_priors / "sd"), ["clip_l"], learned=learned)
    assert embedded.embeddings.isfinite().all()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("a frog happily jumping over a stone", "frog"),
        ("a small, fluffy dog is barking", "small, fluffy dog"),
        ("a bird flies", "bird"),
        ("a panda dances", "panda"),
        ("best quality, masterpiece, a panda is dancing", "panda"),
        ("it is dancing", None),  # the caption is asked
        ("a red fox (cartoon) is running", "red fox"),
    ],
)
def test_who_moves(prompt, subject):
    from animate124.pipeline.wording import subject_of

    found = subject_of(prompt)
    assert (found and found.noun) == subject
