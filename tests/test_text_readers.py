"""Text readers against the pipelines' own way of reading a prompt, on random tiny encoders; what is
kept on disk of it.
"""

import json
from types import SimpleNamespace

import pytest
import threestudio
import torch
from animate124.pretrained import embedding_cache
from animate124.pretrained.embedding_cache import entry_key, read_texts
from animate124.pretrained.text_readers import (
    ClipReader,
    T5Reader,
    UMT5Reader,
    class_of_transformers,
    reader_of,
)
from animate124.prompt_processors.prompts import VIEWS, PromptProcessor
from safetensors import safe_open

diffusers = pytest.importorskip("diffusers", minversion="0.33")  # its pipelines are the reference
import transformers

from tiny_models import TEXT_LENGTH as LENGTH
from tiny_models import TEXT_WIDTH as WIDTH
from tiny_models import write_text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return {k: write_text(folder / k, k) for k in ("T5EncoderModel", "UMT5EncoderModel")}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory of its own, hence an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedding_cache, "cleanup", lambda: None)


PROMPTS = ["a panda is dancing", "", "a fox , " * 9]  # the last is too long


@pytest.mark.parametrize(
    "kind, pipeline",
    [
        ("T5EncoderModel", "LTXPipeline"),
        ("T5EncoderModel", "CogVideoXPipeline"),
        ("UMT5EncoderModel", "WanPipeline"),
    ],
)
def test_prompts_are_read_as_the_pipelines_read_them(folders, kind, pipeline, monkeypatch):
    folder = folders[kind]
    encoder = getattr(transformers, kind).from_pretrained(folder / "text_encoder")
    tokenizer = transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer")
    of_pipeline = getattr(diffusers, pipeline)._get_t5_prompt_embeds
    itself = SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, _execution_device="cpu")
    with torch.no_grad():
        theirs = of_pipeline(itself, PROMPTS, max_sequence_length=LENGTH)
    ours = read_texts(str(folder), PROMPTS)
    if pipeline == "LTXPipeline":
        theirs, mask = theirs
        assert torch.equal(ours.mask, mask)
    torch.testing.assert_close(ours.embeddings, theirs, atol=1e-5, rtol=1e-5)
    assert ours.mask.sum(1).tolist() == [5, 1, LENGTH]


def test_a_learned_token_is_a_row_of_t5s_table_too(folders):
    folder = str(folders["T5EncoderModel"])
    reader = T5Reader(folder, {}, "cpu")
    (fox,) = reader.prompt_ids("fox")
    vector = reader.encoder.get_input_embeddings().weight[[fox]].clone()
    ours = T5Reader(folder, {"<token>": vector}, "cpu").read("a <token> is dancing")
    theirs = reader.read("a fox is dancing")
    torch.testing.assert_close(ours.embedding, theirs.embedding)
    with pytest.raises(ValueError, match=r"'<token>' has 3 dimensions.*takes 16"):
        T5Reader(folder, {"<token>": torch.zeros(1, 3)}, "cpu")


def test_the_folder_says_which_reader(folders, random_priors, tmp_path):
    assert reader_of(str(random_priors / "sd")) is ClipReader
    for kind, reader in (("T5EncoderModel", T5Reader), ("UMT5EncoderModel", UMT5Reader)):
        assert reader_of(str(folders[kind])) is reader
    config = tmp_path / "text_encoder" / "config.json"
    config.parent.mkdir()
    for stated, found in (({}, ClipReader), ({"architectures": []}, ClipReader)):
        config.write_text(json.dumps(stated))
        assert reader_of(str(tmp_path)) is found
    config.write_text('{"architectures": ["LlamaModel"]}')
    with pytest.raises(ValueError, match=r"config\.json is of a LlamaModel.*T5EncoderModel"):
        reader_of(str(tmp_path))
    with pytest.raises(ValueError, match=r"has no UMT6EncoderModel.*newer"):
        class_of_transformers("UMT6EncoderModel")


def test_a_vocabulary_that_is_a_git_lfs_pointer_is_named(tmp_path):
    folder = write_text(tmp_path)
    (folder / "tokenizer" / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"spiece\.model.*Git LFS pointer"):
        T5Reader(str(folder), {}, "cpu")


def test_t5_is_read_in_bfloat16_on_a_gpu_alone(folders):
    reader = T5Reader(str(folders["T5EncoderModel"]), {}, "cpu")
    assert reader.dtype == torch.float32
    reader.device = torch.device("cuda")
    assert reader.dtype == torch.bfloat16


# ---- what is kept on disk


def entries():
    return sorted(embedding_cache.FOLDER.glob("*.safetensors"))


def test_the_mask_is_kept_with_the_embedding(folders, monkeypatch):
    folder = str(folders["T5EncoderModel"])
    first = read_texts(folder, PROMPTS)
    monkeypatch.setattr(T5Reader, "read", None)  # it would fail
    second = read_texts(folder, PROMPTS)
    assert torch.equal(first.embeddings, second.embeddings) and torch.equal(first.mask, second.mask)
    monkeypatch.undo()


def test_rows_of_another_length_are_other_entries(folders):
    folder = str(folders["UMT5EncoderModel"])
    shapes = [read_texts(folder, PROMPTS[:1], length=n).embeddings.shape for n in (None, 6, 20)]
    assert shapes == [(1, LENGTH, WIDTH), (1, 6, WIDTH), (1, 20, WIDTH)] and len(entries()) == 3


def test_clips_entries_are_those_of_before_there_were_masks(random_priors):
    """An entry that an older version wrote is read, and the other way round."""
    key = "de98eab71418a1731421d349137a0c38cadcd3266782515d4fe830fa651cdce4"
    assert entry_key("model", "a b", {}) == key
    texts = read_texts(str(random_priors / "sd"), ["a panda"])
    assert texts.mask is None
    with safe_open(entries()[0], framework="pt") as file:
        assert list(file.keys()) == ["embedding"]
        assert sorted(file.metadata()) == ["cut", "prompt", "sha256"]


# ---- prompt processors


class T5PromptProcessor(PromptProcessor):
    text_length = 10


def test_a_cameras_prompt_has_its_mask(folders):
    config = {"pretrained_model_name_or_path": str(folders["T5EncoderModel"]), "prompt": "a fox"}
    prompt = T5PromptProcessor(config)()
    azimuth = torch.tensor([0.0, 90.0])
    angles = torch.zeros(2), azimuth, torch.full((2,), 2.5)
    for by_view, tokens in (
        (True, [6, 6, 1, 1]),
        (False, [3, 3, 1, 1]),
    ):  # "a fox , front view </s>"
        mask = prompt.get_text_masks(*angles, view_dependent_prompting=by_view)
        embeddings = prompt.get_text_embeddings(*angles, view_dependent_prompting=by_view)
        assert embeddings.shape == (4, 10, WIDTH) and mask.shape == (4, 10)
        assert mask.sum(1).tolist() == tokens
    front = read_texts(config["pretrained_model_name_or_path"], ["a fox, front view"], length=10)
    both = prompt.get_text_embeddings(*angles)
    torch.testing.assert_close(both[:1], front.embeddings)
    assert len(prompt.masks) == 2 + len(VIEWS)


def test_clips_prompts_have_no_mask(random_priors):
    processor = threestudio.find("animate124-prompt-processor")
    model = str(random_priors / "sd")
    prompt = processor({"pretrained_model_name_or_path": model, "prompt": "a fox"})()
    assert prompt.get_text_masks(*torch.zeros(3, 2)) is None
