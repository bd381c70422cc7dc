"""From a photo to a cut-out, its depth, its normals and a caption."""

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import animate124
import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from animate124.data.cameras import Cameras
from animate124.preprocess import command
from animate124.preprocess.command import preprocess
from animate124.preprocess.errors import PreprocessError
from animate124.preprocess.framing import recentre
from animate124.preprocess.grabcut import grabcut, path_cost
from animate124.preprocess.maps import depth_picture, estimate_depth, normals_from_depth
from animate124.preprocess.photo import read_photo
from animate124.preprocess.subject import coverage
from animate124.toyworld import random_priors as tiny
from animate124.toyworld.characters import make_character
from animate124.toyworld.motions import animate
from animate124.toyworld.ray_tracing import render
from animate124.toyworld.subject import write_subject
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

ROOT = Path(animate124.__file__).parent
PANDA = ROOT / "load" / "toy-panda"


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def alpha_mask(path):
    return np.asarray(Image.open(path))[..., 3] > 127


def run(*arguments):
    return command.main([str(a) for a in arguments])


def pixels(path):
    return np.asarray(Image.open(path))


def on_disk(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def photo(tmp_path):
    """The toy panda alone in a folder; nothing is installed or cached that could help."""
    return Path(shutil.copy(PANDA / "image.png", tmp_path))


@pytest.fixture
def no_cache(monkeypatch, tmp_path_factory):
    """An empty cache of the hub, which conftest.py has declared to be offline."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


# ------------------------------------------------------------------------------------ masks


def test_grabcut_finds_a_toy_where_it_stands(tmp_path):
    truth = write_subject(tmp_path / "truth", "fox", size=256)
    photo = Path(shutil.copy(truth["photo"], tmp_path))
    assert run(photo, "--background", "grabcut", "--dont_recenter", "--size", 256) == 0
    assert iou(alpha_mask(tmp_path / "_rgba.png"), alpha_mask(truth["cut-out"])) > 0.95


def test_pale_parts_stay_where_the_background_has_one_colour():
    photo = np.asarray(read_photo(PANDA / "image.png"))
    assert iou(grabcut(photo) > 0.5, alpha_mask(PANDA / "_rgba.png")) > 0.98


def shaded_wall(side):
    """Light grey that darkens downwards and to the sides: [H W 3]."""
    y, x = np.mgrid[0:side, 0:side] / side
    return (0.86 - 0.25 * y - 0.1 * (x - 0.3) ** 2)[..., None] * [0.9, 0.95, 1.0]


def busy_scene(side):
    """Coloured clouds of three sizes: [H W 3]."""
    random = np.random.default_rng(0)
    layers = [
        cv2.resize(random.random((n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC) / weight
        for n, weight in ((4, 1), (9, 2), (20, 4))
    ]
    return 0.15 + 0.6 * cv2.normalize(sum(layers), None, 0, 1, cv2.NORM_MINMAX)


@functools.cache
def photo_before(species, background):
    """A toy's grainy photo before a background, and its true mask."""
    scene = animate(make_character(species), "still", torch.zeros(1))
    seen = render(scene, Cameras.of().batch(512, 512), supersample=2)
    rgb, alpha = seen["rgb"][0].numpy(), seen["alpha"][0].numpy()
    picture = rgb - (1 - alpha) * (1 - background(512))
    picture += np.random.default_rng(1).normal(0, 0.012, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), alpha[..., 0] > 0.5


@pytest.mark.parametrize(
    ("species", "background", "least"),
    [("fox", shaded_wall, 0.95), ("frog", shaded_wall, 0.88), ("panda", busy_scene, 0.95)],
)
def test_grabcut_before_a_shaded_wall_and_a_busy_scene(species, background, least):
    photo, mask = photo_before(species, background)
    assert iou(grabcut(photo) > 0.5, mask) > least


@pytest.mark.parametrize("side", ["right", "left", "bottom"])
def test_a_subject_that_the_border_cuts_off_is_found_and_said_to_be_cut(side):
    photo, mask = photo_before("panda", busy_scene)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    y, x = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    part = {"right": np.s_[:, : x + 20], "left": np.s_[:, x - 20 :], "bottom": np.s_[: y + 30]}
    alpha = grabcut(photo[part[side]])
    assert iou(alpha > 0.5, mask[part[side]]) > 0.85
    assert side in coverage(alpha).partition("cut off at the")[2]


def test_paths_cost_nothing_over_a_gradient_and_a_jump_at_an_outline():
    lab = np.tile(np.linspace(0, 90, 60, dtype=np.float32)[:, None, None], (1, 60, 3))
    lab[20:40, 20:40, 0] += 50  # a closed region
    source = np.zeros((60, 60), bool)
    source[0] = True
    cost = path_cost(lab, source)
    assert cost[:19].max() == 0 and cost[-1].max() == 0
    assert cost[25:35, 25:35].min() > 40


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


def test_size_and_margin_are_those_asked_for(photo):
    assert run(photo, "--background", "grabcut", "--size", 96, "--border_ratio", 0.5) == 0
    mask = alpha_mask(photo.with_name("_rgba.png"))
    assert mask.shape == (96, 96)
    assert max(np.ptp(i) + 1 for i in np.nonzero(mask)) == pytest.approx(48, abs=1)


# ------------------------------------------------------- which program removes the background

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


# ------------------------------------------------------------------------------- kinds of file


def saved(path, image, **options):
    image.save(path, **options)
    return path


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


# -------------------------------------------------------------------- models: depth, normals, words


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
    ("model", "words"), [("some/model", "can't be reached"), ("/no/such", "no such folder")]
)
def test_a_model_asked_for_by_name_has_to_load(photo, no_cache, capsys, option, model, words):
    options = ["--background", "grabcut", "--size", 64, "--need_caption"]
    assert run(photo, *options, option, model) == 1
    err = capsys.readouterr().err
    assert f"{model} can't be used here" in err and words in err


def test_a_folder_with_another_kind_of_model_is_named(photo, blip, capsys):
    assert run(photo, "--background", "grabcut", "--size", 64, "--depth_model", blip[0]) == 1
    assert f"{blip[0]} can't be used here" in capsys.readouterr().err


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


# ------------------------------------------------------------------- what can't be, and messages


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


def test_an_existing_cut_out_stays_as_it_is(photo, depth_models):
    cut = photo.with_name("_rgba.png")
    Image.open(PANDA / "_rgba.png").resize((90, 70)).save(cut)
    before = cut.read_bytes(), cut.stat().st_mtime_ns
    options = ["--use_existing_background", "--depth_model", depth_models / "dpt"]
    assert run(photo, *options, "--size", 64, "--border_ratio", 0.4) == 0
    assert (cut.read_bytes(), cut.stat().st_mtime_ns) == before
    depth = pixels(photo.with_name("_depth.png"))
    assert ((depth > 0) == alpha_mask(cut)).all()  # not recentred, not resized


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


def test_a_git_lfs_pointer_is_told_as_one(tmp_path):
    pointer = tmp_path / "photo.jpg"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(PreprocessError, match=r"Git LFS pointer.*git lfs pull"):
        read_photo(pointer)
