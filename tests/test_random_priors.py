"""The random tiny models: whole, deterministic, and readable by old and new libraries."""

import json
import sys

import pytest
import torch
from animate124.toyworld.random_priors import WORDS, byte_pairs, main, make_random_priors
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet3DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast
from transformers import CLIPVisionModelWithProjection as CLIPVision

COMPONENTS = [
    ("sd", "unet", UNet2DConditionModel),
    ("sd", "vae", AutoencoderKL),
    ("sd", "text_encoder", CLIPTextModel),
    ("zero123", "unet", UNet2DConditionModel),
    ("zero123", "vae", AutoencoderKL),
    ("zero123", "image_encoder", CLIPVision),
    ("text-to-video", "unet", UNet3DConditionModel),
    ("text-to-video", "vae", AutoencoderKL),
    ("text-to-video", "text_encoder", CLIPTextModel),
    ("controlnet-tile", "", ControlNetModel),
    ("image-to-video", "", UNet3DConditionModel),
]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(random_priors, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again = contents(make_random_priors(tmp_path / "again", seed=0))
    assert torch.rand(1) == expected
    assert again == contents(random_priors)
    other = contents(make_random_priors(tmp_path / "other", seed=1))
    weights = [p for p in other if p.suffix == ".safetensors"]
    assert other.keys() == again.keys() and all(other[p] != again[p] for p in weights)
    assert len({again[p] for p in weights}) == len(weights) == 12  # no two models alike
    assert sum(map(len, again.values())) < 8e6


@pytest.mark.parametrize("model, part, kind", COMPONENTS)
def test_every_component_loads_without_a_missing_weight(random_priors, model, part, kind):
    loaded, report = kind.from_pretrained(
        random_priors / model, subfolder=part, output_loading_info=True
    )
    missing = [name for name in report["missing_keys"] if "position_ids" not in name]
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    # nothing is left at zero: fresh ControlNets and temporal layers would do nothing
    assert all(p.any() for p in loaded.parameters())


def test_what_old_libraries_ask_for(random_priors):
    for path in random_priors.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}, path  # transformers 4.28 refuses others
    for model in ("sd", "text-to-video"):
        names = load_file(random_priors / model / "text_encoder" / "model.safetensors")
        assert all(name.startswith("text_model.") for name in names)
        tokenizer = {p.name for p in (random_priors / model / "tokenizer").iterdir()}
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= tokenizer
    unet = json.loads((random_priors / "text-to-video" / "unet" / "config.json").read_text())
    assert all(channels % 32 == 0 for channels in unet["block_out_channels"])


def test_architectures(random_priors):
    def config(*path):
        return json.loads(random_priors.joinpath(*path, "config.json").read_text())

    assert config("zero123", "unet")["in_channels"] == 8
    assert config("image-to-video")["in_channels"] == 8
    width = config("zero123", "unet")["cross_attention_dim"]
    assert config("zero123", "image_encoder")["projection_dim"] == width
    assert config("zero123", "clip_camera_projection")["embedding_dim"] == width
    for model in ("sd", "text-to-video"):
        text = config(model, "text_encoder")
        assert text["hidden_size"] == config(model, "unet")["cross_attention_dim"]
    for model in ("sd", "zero123", "text-to-video"):
        assert len(config(model, "vae")["block_out_channels"]) == 4  # shrinks by 8
        assert (random_priors / model / "model_index.json").is_file()


def test_the_controlnet_fits_the_image_model(random_priors):
    unet = UNet2DConditionModel.from_pretrained(random_priors / "sd", subfolder="unet")
    control = ControlNetModel.from_pretrained(random_priors / "controlnet-tile")
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    with torch.no_grad():
        down, middle = control(z, t, text, torch.rand(1, 3, 64, 64), return_dict=False)
        plain = unet(z, t, text).sample
        residuals = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }
        steered = unet(z, t, text, **residuals).sample
    assert (steered - plain).std() > 0.05 and 0.1 < plain.std() < 10


@pytest.fixture(scope="module")
def tokenizers(random_priors):
    kinds = (CLIPTokenizer, CLIPTokenizerFast)
    return [kind.from_pretrained(random_priors / "sd", subfolder="tokenizer") for kind in kinds]


def test_words_are_one_token(tokenizers):
    assert len(WORDS.split()) == len(set(WORDS.split()))
    for tokenizer in tokenizers:
        for word in WORDS.split():
            assert tokenizer.tokenize(word) == [word + "</w>"]


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_encoded(tokenizers, text):
    tokenizer = tokenizers[1]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_text_comes_back(tokenizers):
    for text in ("a panda is dancing, front view", "ein bär 跳舞 🐼", "zzyzx don't 1234 <token>"):
        ids = tokenizers[1](text, add_special_tokens=False).input_ids
        assert tokenizers[1].decode(ids).replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_byte_pairs_are_a_vocabulary_for_any_words(words):
    """Each merge joins two entries to a third, and replaying them makes one token of each word."""
    vocabulary, merges = byte_pairs(words)
    assert len(set(vocabulary)) == len(vocabulary)
    known = set(vocabulary[:512])
    for left, right in merges:
        assert left in known and right in known
        known.add(left + right)
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for left, right in merges:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        assert pieces == [word + "</w>"]


def test_command_line(random_priors, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["random_priors", str(tmp_path / "out"), "--seed", "0"])
    main()
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(random_priors)
