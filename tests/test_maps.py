"""Depth, normals and the caption: the models' answers, and what is done with them."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from animate124.preprocess.maps import depth_picture, estimate_depth, normals_from_depth
from animate124.toyworld import random_priors as tiny
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from photos import PANDA, alpha_mask, pixels, run


@pytest.fixture
def no_cache(monkeypatch, tmp_path_factory):
    """An empty cache of the hub, which conftest.py has declared to be offline."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def json_file(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def depth_models(tmp_path_factory):
    """Random tiny folders as on the hub: Depth Anything (relative, metric) and DPT."""
    pytest.importorskip("transformers", minversion="4.45")
    out = tmp_path_factory.mktemp("depth")
    numbers = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16}
    neck = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    neck["reassemble_factors"] = [4, 2, 1, 0.5]
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    backbone = transformers.Dinov2Config(
        **numbers, image_size=28, patch_size=14, out_features=stages, reshape_hidden_states=False
    )
    for kind in ("relative", "metric"):
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=14,
            reassemble_hidden_size=16,
            head_hidden_size=8,
            depth_estimation_type=kind,
            **neck,
        )
        torch.manual_seed(0)
        network = transformers.DepthAnythingForDepthEstimation(config)
        torch.nn.init.normal_(network.head.conv3.weight, std=3)
        torch.nn.init.constant_(network.head.conv3.bias, 0.5)
        network.save_pretrained(out / kind)
        processor = {"do_resize": True, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
        json_file(
            out / kind / "preprocessor_config.json",
            image_processor_type="DPTImageProcessor",
            size={"height": 56, "width": 56},
            **processor,
        )
    config = transformers.DPTConfig(
        **numbers,
        **neck,
        image_size=32,
        patch_size=8,
        intermediate_size=16,
        backbone_out_indices=[0, 1, 2, 3],
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(out / "dpt")
    json_file(
        out / "dpt" / "preprocessor_config.json",
        image_processor_type="DPTImageProcessor",
        size={"height": 32, "width": 32},
    )
    return out


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A random tiny BLIP that never ends by itself, with files as in the hub's folder."""
    out = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "panda", "cat", "sits"]
    numbers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    numbers |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 40}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = transformers.BlipConfig(
        text_config={**numbers, **text, **ids},
        vision_config={**numbers, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    network = transformers.BlipForConditionalGeneration(config)
    head = network.text_decoder.cls.predictions
    with torch.no_grad():
        head.decoder.bias[:5] = -100  # tied to head.bias
    network.save_pretrained(out)
    (out / "vocab.txt").write_text("\n".join(words) + "\n")
    json_file(out / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)
    json_file(
        out / "preprocessor_config.json",
        image_processor_type="BlipImageProcessor",
        processor_class="BlipProcessor",
        size={"height": 32, "width": 32},
    )
    return out, set(words[5:])


@pytest.fixture(scope="module")
def marigold(tmp_path_factory):
    """A random tiny normals pipeline of diffusers."""
    pytest.importorskip("diffusers", minversion="0.31")
    out = tmp_path_factory.mktemp("marigold")
    vocabulary, merges = tiny.byte_pairs(["normals"])
    tiny.write_tokenizer(out / "tokenizer", vocabulary, merges)
    tiny.write_text_encoder(out / "text_encoder", vocabulary, 0)
    unet = {**tiny.UNET_2D, "in_channels": 8}
    tiny.write_diffusers(out / "unet", UNet2DConditionModel, unet, 1)
    tiny.write_diffusers(out / "vae", AutoencoderKL, tiny.VAE, 2)
    json_file(out / "scheduler" / "scheduler_config.json", **tiny.SCHEDULER)
    index = tiny.text_index("MarigoldNormalsPipeline", "UNet2DConditionModel")
    steps = {"default_denoising_steps": 1, "default_processing_resolution": 64}
    json_file(out / "model_index.json", **index, **steps)
    return out


def test_depth_is_transformers_depth_estimation_at_the_pictures_size(depth_models):
    rgb = Image.open(PANDA / "image.png").convert("RGB").resize((120, 90))
    reference = transformers.pipeline("depth-estimation", model=str(depth_models / "relative"))
    expected = np.asarray(reference(rgb)["predicted_depth"], np.float32).squeeze()
    depth = estimate_depth(rgb, str(depth_models / "relative"))
    assert depth.shape == (90, 120) and np.ptp(depth) > 0
    expected = np.asarray(Image.fromarray(expected).resize(rgb.size, Image.Resampling.BICUBIC))
    assert np.corrcoef(depth.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_model_that_gives_metres_is_turned_into_inverse_depth(depth_models):
    rgb = Image.open(PANDA / "image.png").convert("RGB").resize((56, 56))
    network = transformers.DepthAnythingForDepthEstimation.from_pretrained(depth_models / "metric")
    processor = transformers.AutoImageProcessor.from_pretrained(depth_models / "metric")
    with torch.no_grad():
        metres = network(**processor(rgb, return_tensors="pt")).predicted_depth[0].numpy()
    depth = estimate_depth(rgb, str(depth_models / "metric"))
    assert np.ptp(metres) > 0
    np.testing.assert_allclose(depth * metres, 1, rtol=1e-3)


@pytest.mark.parametrize("model", ["relative", "dpt"])
def test_depth_and_normals_are_written_for_the_subject_only(photo, depth_models, model):
    options = ["--background", "grabcut", "--size", 64]
    assert run(photo, *options, "--depth_model", depth_models / model) == 0
    mask = alpha_mask(photo.with_name("_rgba.png"))
    depth = pixels(photo.with_name("_depth.png"))
    assert depth.shape == (64, 64) and depth.dtype == np.uint8
    assert (depth[~mask] == 0).all() and depth[mask].min() == 1 and depth[mask].max() == 255
    normal = pixels(photo.with_name("_normal.png"))
    assert (normal[~mask] == 0).all()
    vectors = normal[mask] / 127.5 - 1
    assert np.abs(np.linalg.norm(vectors, axis=-1) - 1).max() < 0.02 and vectors[:, 2].min() > 0


def test_the_nearest_pixel_is_the_brightest():
    depth = np.arange(100, dtype=np.float32).reshape(10, 10)  # inverse depth: larger is nearer
    mask = np.zeros((10, 10), bool)
    mask[2:8, 2:8] = True
    picture = depth_picture(depth, mask)
    assert picture[7, 7] == 255 and picture[2, 2] == 1 and picture[0, 0] == picture[9, 9] == 0


def test_normals_come_from_a_model_when_one_is_named(photo, depth_models, marigold):
    options = ["--background", "grabcut", "--size", 64, "--normal_model", marigold]
    written = []
    for _ in range(2):
        assert run(photo, *options, "--depth_model", depth_models / "dpt") == 0
        written.append(pixels(photo.with_name("_normal.png")))
    mask = alpha_mask(photo.with_name("_rgba.png"))
    assert (written[0] == written[1]).all()  # the noise is seeded
    assert np.abs(np.linalg.norm(written[0][mask] / 127.5 - 1, axis=-1) - 1).max() < 0.02
    assert (written[0][~mask] == 0).all()
    rgba = Image.open(photo.with_name("_rgba.png"))
    depth = estimate_depth(rgba.convert("RGB"), str(depth_models / "dpt"))
    ours = 127.5 * (normals_from_depth(depth, mask) + 1)
    assert np.abs(written[0] - ours)[mask].mean() > 10


def test_the_caption_is_the_models_sentence(photo, blip):
    folder, words = blip
    options = ["--background", "grabcut", "--size", 64]
    assert run(photo, *options, "--caption_model", folder) == 0
    assert not photo.with_name("_caption.txt").exists()
    assert run(photo, *options, "--need_caption", "--caption_model", folder) == 0
    text = photo.with_name("_caption.txt").read_text(encoding="utf-8")
    assert text.endswith("\n") and text.count("\n") == 1
    assert set(text.split()) <= words and len(text.split()) > 5


def test_a_model_in_the_hubs_cache_is_used_offline(no_cache, depth_models):
    cached = no_cache / "models--some--model"
    shutil.copytree(depth_models / "dpt", cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    rgb = Image.open(PANDA / "image.png").convert("RGB").resize((64, 48))
    assert estimate_depth(rgb, "some/model").shape == (48, 64)


@pytest.mark.parametrize("option", ["--depth_model", "--normal_model", "--caption_model"])
@pytest.mark.parametrize(
    ("model", "words"), [("some/model", "HF_HUB_OFFLINE is set"), ("/no/such", "no such folder")]
)
def test_a_model_asked_for_by_name_has_to_load(photo, no_cache, capsys, option, model, words):
    options = ["--background", "grabcut", "--size", 64, "--need_caption"]
    assert run(photo, *options, option, model) == 1
    err = capsys.readouterr().err
    assert f"{model} can't be used here" in err and words in err


def test_a_folder_with_another_kind_of_model_is_named(photo, blip, capsys):
    assert run(photo, "--background", "grabcut", "--size", 64, "--depth_model", blip[0]) == 1
    assert f"{blip[0]} can't be used here" in capsys.readouterr().err


def test_normals_of_a_slope_lean_away_from_it():
    depth = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))  # nearer to the right
    whole = np.ones((64, 64), bool)
    normal = normals_from_depth(depth, whole)[32, 32]
    assert normal[0] == pytest.approx(-0.5 / np.hypot(0.5, 1), abs=0.02) and abs(normal[1]) < 1e-3
    normal = normals_from_depth(depth.T, whole)[32, 32]  # nearer to the bottom
    assert normal[1] == pytest.approx(0.5 / np.hypot(0.5, 1), abs=0.02) and abs(normal[0]) < 1e-3


def test_normals_of_a_half_sphere_are_a_spheres():
    y, x = np.mgrid[1:-1:129j, -1:1:129j]  # y up
    mask = np.hypot(x, y) < 1
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    normal = normals_from_depth(z.astype(np.float32) * 7 + 3, mask)
    cosine = (normal * np.dstack([x, y, z])).sum(-1)[np.hypot(x, y) < 0.85]
    assert np.rad2deg(np.arccos(cosine.clip(-1, 1))).max() < 4


def test_an_existing_cut_out_stays_as_it_is(photo, depth_models):
    cut = photo.with_name("_rgba.png")
    Image.open(PANDA / "_rgba.png").resize((90, 70)).save(cut)
    before = cut.read_bytes(), cut.stat().st_mtime_ns
    options = ["--use_existing_background", "--depth_model", depth_models / "dpt"]
    assert run(photo, *options, "--size", 64, "--border_ratio", 0.4) == 0
    assert (cut.read_bytes(), cut.stat().st_mtime_ns) == before
    depth = pixels(photo.with_name("_depth.png"))
    assert ((depth > 0) == alpha_mask(cut)).all()  # not recentred, not resized
