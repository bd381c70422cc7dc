"""The priors on random tiny models: each is checked against its row of the method's table, by
looking at what its network is given and what it answers.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import threestudio
import torch
import torch.nn.functional as F
from animate124.guidance import distillation, sds
from animate124.guidance.codecs import ImageCodec
from animate124.guidance.shared_halves import share_halves
from animate124.guidance.zero123_model import (
    ClipSettings,
    camera_offset,
    clip_pixels,
    read_clip_settings,
)
from diffusers import AutoencoderKL
from PIL import Image

from guidance_table import ALPHA_BAR, FixedPrompt, Row, cameras, check, watch

SIZE = 64  # pixels of the tiny VAEs' input; latents are 8 x 8
WHITE = 1.0
MODELS = {f"{of}_name_or_path" for of in ("pretrained_model", "controlnet", "unet")}
TABLE = {
    "image": Row(
        (200, 600),
        "uncond",
        100,
        lambda a: 1 - a.sqrt(),
        latents=(8, 4, 8, 8),
        model="sd",
        config={"size": SIZE},
    ),
    "zero123": Row(
        (200, 600),
        "uncond",
        5,
        lambda a: 1 - a.sqrt(),
        latents=(8, 4, 8, 8),
        model="zero123",
        config={"size": SIZE, "cond_image_path": "reference.png"},
    ),
    "stable-zero123": Row(
        (200, 600),
        "uncond",
        3,
        lambda a: 1 - a.sqrt(),
        latents=(8, 4, 8, 8),
        model="zero123",
        config={"size": SIZE, "cond_image_path": "reference.png"},
    ),
    "zeroscope": Row(
        (20, 980),
        "cond",
        100,
        lambda a: 1 - a,
        latents=(2, 4, 4, 8, 8),
        frames=4,
        model="text-to-video",
        config={"width": SIZE, "height": SIZE},
    ),
    "image-to-video": Row(
        (20, 980),
        "uncond",
        2,
        lambda a: 1 - a,
        latents=(2, 4, 4, 8, 8),
        frames=4,
        model="text-to-video",
        config={"unet_name_or_path": "image-to-video", "width": SIZE, "height": SIZE},
    ),
    "controlnet-tile": Row(
        (20, 980),
        "uncond",
        7.5,
        lambda a: 1 - a,
        latents=(4, 4, 8, 8),
        frames=4,
        model="sd",
        config={"controlnet_name_or_path": "controlnet-tile", "fixed_size": SIZE},
    ),
}
every_prior = pytest.mark.parametrize("name", TABLE)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, random_priors):
    """A working directory of its own (for the embedding cache) with a reference image."""
    folder = tmp_path_factory.mktemp("guidance")
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 100, 50, 255)
    Image.fromarray(rgba).save(folder / "reference.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def build(workplace, random_priors):
    def build(name, **changes):
        row = TABLE[name]
        config = {"pretrained_model_name_or_path": row.model} | row.config | changes
        for key in MODELS & config.keys():
            config[key] = str(random_priors / config[key])
        return threestudio.find(f"animate124-{name}-guidance")(config)

    return build


@pytest.fixture(scope="module")
def priors(build):
    """Every prior once; tests leave them as they were."""
    return {name: build(name) for name in TABLE}


@every_prior
def test_latents_get_the_gradient_of_the_table(priors, name):
    check(priors[name], TABLE[name])


@every_prior
def test_models_are_frozen_and_no_graph_runs_through_the_unet(priors, name):
    prior = priors[name]
    seen = watch(prior, torch.rand(4, 8, 8, 3), **cameras(4, TABLE[name].frames))
    assert not seen.answer.requires_grad and seen.rgb_grad.isfinite().all()
    for model in (prior.network, prior.vae, getattr(prior, "controlnet", prior.network)):
        assert not model.training
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@every_prior
def test_timesteps_are_one_a_sample_and_differ(priors, name):
    """Two clips, or eight images, don't share a t; a clip has one."""
    rows = set()
    for _ in range(3):
        seen = watch(priors[name], torch.rand(8, 8, 8, 3), **cameras(8, TABLE[name].frames))
        rows.add(tuple(seen.t.tolist()))
    assert all(len(set(row)) > 1 for row in rows) and len(rows) == 3


@every_prior
def test_autocast_changes_nothing(priors, name):
    """Trainers run at 16-mixed; the models keep their own precision."""
    rgb, camera = torch.rand(4, 8, 8, 3), cameras(4, TABLE[name].frames)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(priors[name](rgb, FixedPrompt(), **camera)["loss_sds"])
    assert losses[0] == losses[1] and losses[1].dtype == torch.float32


@every_prior
def test_half_precision_weights_give_nearly_the_same_gradient(build, priors, monkeypatch, name):
    """What a GPU does by default; latents, noise and loss stay float32."""
    monkeypatch.setattr(distillation, "weights_dtype", lambda *asked: torch.float16)
    prior = build(name)
    assert prior.network.dtype == prior.vae.dtype == torch.float16
    rgb, camera = torch.rand(4, 16, 16, 3), cameras(4, TABLE[name].frames)
    seen = []
    for each in (priors[name], prior):
        torch.manual_seed(6)
        seen.append(watch(each, rgb, **camera))
    assert seen[1].network["sample"].dtype == seen[1].answer.dtype == torch.float16
    assert seen[1].z.dtype == seen[1].out["loss_sds"].dtype == torch.float32
    exact, half = (s.rgb_grad for s in seen)
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_half_precision_frames_are_taken(priors):
    out = priors["image"](torch.rand(1, 8, 8, 3).half(), FixedPrompt(), **cameras(1))
    assert out["loss_sds"].dtype == torch.float32 and out["loss_sds"].isfinite()


def test_schedules_move_the_timesteps_and_the_clipping(build):
    prior = build(
        "image",
        min_step_percent=[0, 0.5, 0.02, 100],  # from step 0 to 100
        max_step_percent=[50, 0.98, 0.5, 100],
        grad_clip=[0, 2.0, 1.0, 100],
    )
    state = []
    for step in (0, 50, 75, 100, 1000):
        prior.do_update_step(0, step)
        steps = [prior.noise.time_at(x) for x in (prior.low, prior.high)]
        state.append((*steps, prior.grad_clip_val))
    assert state == [
        (500, 980, 2.0),
        (260, 980, 1.5),
        (140, 740, 1.25),
        (20, 500, 1.0),
        (20, 500, 1.0),
    ]
    seen = watch(prior, torch.rand(2, 8, 8, 3), **cameras(2))
    assert seen.z_grad.abs().max() == 1.0 / 2  # clamped, then divided by the batch
    assert seen.out["max_step"] == 500


def test_v_prediction_is_turned_into_noise(build, random_priors, tmp_path):
    folder = tmp_path / "sd-v"
    shutil.copytree(random_priors / "sd", folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    prior = build("image", pretrained_model_name_or_path=folder)
    seen = watch(prior, torch.rand(1, 8, 8, 3), **cameras(1))
    a = prior.noise.alphas_cumprod[seen.network["t"][0]]
    z_t = seen.network["sample"][0]
    noise = (z_t - a.sqrt() * seen.z[0]) / (1 - a).sqrt()
    cond, uncond = (a.sqrt() * v + (1 - a).sqrt() * z_t for v in seen.answer)
    expected = (1 - a.sqrt()) * (uncond + 100 * (cond - uncond) - noise)
    torch.testing.assert_close(seen.z_grad[0], expected, atol=1e-3, rtol=1e-3)
    config.write_text(config.read_text().replace('"v_prediction"', '"sample"'))
    with pytest.raises(ValueError, match=r"predicts 'sample'.*v_prediction will do"):
        build("image", pretrained_model_name_or_path=folder)


def test_weighting_strategy_is_read(build):
    gradients = {}
    for strategy in ("uniform", "sds"):
        torch.manual_seed(0)
        prior = build("image", weighting_strategy=strategy)
        seen = watch(prior, torch.full((1, 8, 8, 3), 0.5), **cameras(1))
        gradients[strategy] = seen.z_grad
    sigma2 = 1 - prior.noise.alphas_cumprod[seen.network["t"][0]]
    torch.testing.assert_close(gradients["sds"], sigma2 * gradients["uniform"])


def test_not_finite_predictions_are_zeroed(priors, monkeypatch):
    prior = priors["image"]
    answer = torch.zeros(2, 4, 8, 8)
    answer[0, 0, 0, 0], answer[0, 1, 1, 1] = float("nan"), float("inf")
    monkeypatch.setattr(prior, "predict_noise", lambda z_t, t, condition: answer)
    rgb = torch.rand(1, 8, 8, 3, requires_grad=True)
    out = prior(rgb, FixedPrompt(), **cameras(1))
    out["loss_sds"].backward()
    assert out["loss_sds"].isfinite() and rgb.grad.isfinite().all() and rgb.grad.any()


# ---- threestudio's own guidances, where the host is the real one (and so the reference)

STOCK = threestudio.find("zero123-unified-guidance").__module__.startswith("threestudio.")


@pytest.mark.skipif(not STOCK, reason="needs the real threestudio")
@pytest.mark.parametrize("name, size", [("image", 512), ("zero123", 256)])
def test_the_gradient_is_that_of_threestudios_unified_guidances(
    build, random_priors, workplace, monkeypatch, name, size
):
    """Same models, same random numbers, same frame; prompts are those of our processor."""
    # whatever the layout of the latents in memory, by which randn_like fills
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, dtype=x.dtype))
    monkeypatch.syspath_prepend(Path(threestudio.__file__).parents[1] / "extern")
    steps = {"min_step_percent": 0.4, "max_step_percent": 0.4}
    reference = workplace / "reference-256.png"  # neither side has to resize it
    Image.open(workplace / "reference.png").resize((256, 256), Image.NEAREST).save(reference)
    image = {"cond_image_path": str(reference)} if name == "zero123" else {}
    ours = build(name, size=size, **steps, **image)
    folder = str(random_priors / {"image": "sd"}.get(name, name))
    config = {"pretrained_model_name_or_path": folder, "half_precision_weights": False}
    config |= {"guidance_scale": TABLE[name].scale}
    if name == "image":
        stock, prompt = "stable-diffusion-unified-guidance", {"prompt": "a panda"}
        prompt["pretrained_model_name_or_path"] = folder
        text = (threestudio.find("animate124-prompt-processor")(prompt)(),)
    else:
        stock, text = "zero123-unified-guidance", ()
        config |= image | {"cond_camera_distance": 2.5}
    theirs = threestudio.find(stock)(config)
    theirs.min_step = theirs.max_step = 400
    camera = cameras(1, azimuth=[20.0]) | {"mvp_mtx": torch.eye(4)[None], "c2w": torch.eye(4)[None]}
    gradients = []
    for guidance in (ours, theirs):
        rgb = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
        rgb.requires_grad_(True)
        torch.manual_seed(4)
        out = guidance(rgb, *text, **camera)
        (out["loss_sds"] if guidance is ours else out["loss_sd"]).backward()
        gradients.append(rgb.grad)
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-3 * scale.item(), rtol=0)


# ---- prompts


@pytest.mark.parametrize("name", ["image", "zeroscope", "controlnet-tile"])
def test_text_reaches_the_unet_conditional_half_first(build, name):
    """Views follow the cameras: an image's own, a clip's first frame's, a tile frame's if asked."""
    prompt, row = FixedPrompt(), TABLE[name]
    prior = build(name, view_dependent_prompting=True)
    azimuth = [0.0, 90, 90, 90, 90, 0, 0, 0]
    seen = watch(prior, torch.rand(8, 8, 8, 3), prompt, **cameras(8, row.frames, azimuth))
    text = seen.network["encoder_hidden_states"]
    cond, uncond = text.chunk(2)
    torch.testing.assert_close(uncond, prompt.uncond.expand_as(uncond))
    front = [bool(torch.equal(row, prompt.front)) for row in cond]
    if name == "image":
        assert front == [True, False, False, False, False, True, True, True]
    elif name == "zeroscope":
        assert front == [True, False]
    else:  # two of four frames: at most one of the first clip is a front view
        assert sum(front[:2]) <= 1 <= sum(front[2:])
    plain = watch(
        build(name, view_dependent_prompting=False),
        torch.rand(8, 8, 8, 3),
        prompt,
        **cameras(8, row.frames, azimuth),
    )
    for cond in plain.network["encoder_hidden_states"].chunk(2)[0]:
        torch.testing.assert_close(cond, prompt.side)


@pytest.mark.parametrize("name", ["image", "zeroscope", "image-to-video", "controlnet-tile"])
def test_a_missing_prompt_is_named(priors, name):
    with pytest.raises(ValueError, match=r"needs a prompt.*prompt_processor_type"):
        priors[name](torch.rand(4, 8, 8, 3), **cameras(4, TABLE[name].frames))


# ---- Zero123


def test_zero123_camera_offset():
    """Numbers worked out by hand; a whole turn changes nothing."""
    elevation, azimuth = torch.tensor([30.0, -15.0]), torch.tensor([90.0, 200.0])
    distance = torch.tensor([2.5, 3.0])
    offset = camera_offset(elevation, azimuth, distance, (15.0, 20.0, 2.0))
    expected = [
        [-np.pi / 12, np.sin(np.deg2rad(70)), np.cos(np.deg2rad(70)), 0.5],
        [np.pi / 6, 0.0, -1.0, 1.0],
    ]
    torch.testing.assert_close(offset, torch.tensor(expected).float(), atol=1e-6, rtol=0)
    turned = camera_offset(elevation, azimuth + 360, distance, (15.0, 20.0, 2.0))
    torch.testing.assert_close(turned, offset, atol=1e-5, rtol=0)


def test_zero123_sees_what_clip_sees(random_priors, workplace):
    """transformers' image processor is the reference; it rounds to 8 bits on the way."""
    from transformers import CLIPImageProcessor

    settings = CLIPImageProcessor.from_pretrained(random_priors / "zero123/feature_extractor")
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(image).resize((SIZE, SIZE), Image.BICUBIC)
    reference = settings(images=image, return_tensors="pt").pixel_values
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    path = random_priors / "zero123/feature_extractor/preprocessor_config.json"
    ours = clip_pixels(pixels, read_clip_settings(path))
    torch.testing.assert_close(ours, reference, atol=0.02, rtol=0)
    old_style = workplace / "old.json"
    old_style.write_text(json.dumps(settings.to_dict() | {"crop_size": 32, "size": 32}))
    torch.testing.assert_close(clip_pixels(pixels, read_clip_settings(old_style)), ours)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_size": None},
        {"crop_size": 0},
        {"crop_size": {}},
        {"image_mean": [0.5]},
        {"image_mean": "abc"},
        {"image_std": [1, 1, 0]},
        {"image_std": [1, 1, math.nan]},
    ],
)
def test_what_clip_wants_is_named_where_it_is_missing(workplace, change):
    path = workplace / "preprocessor_config.json"
    good = {"crop_size": 32, "image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}
    path.write_text(json.dumps(good))
    assert read_clip_settings(path) == (32, (0.5, 0.5, 0.5), (1, 1, 1))
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json doesn't say"):
        read_clip_settings(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*preprocessor_config\.json.*cut off"):
        read_clip_settings(path)


def test_zero123_condition(build, random_priors, workplace):
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file
    from transformers import CLIPVisionModelWithProjection

    prior = build(
        "zero123", cond_elevation_deg=10.0, cond_azimuth_deg=-20.0, cond_camera_distance=2.0
    )
    camera = cameras(2, azimuth=[25.0, 100.0])
    seen = watch(prior, torch.rand(2, 8, 8, 3), **camera)
    # the reference by hand: white behind the square, at the VAE's size
    image = torch.full((1, 3, SIZE, SIZE), WHITE)
    image[..., 16:48, 16:48] = torch.tensor([200, 100, 50])[:, None, None] / 255
    with torch.no_grad():
        vae = AutoencoderKL.from_pretrained(random_priors / "zero123", subfolder="vae")
        mode = vae.encode(2 * image - 1).latent_dist.mean  # not scaled
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            random_priors / "zero123", subfolder="image_encoder"
        )
        settings = ClipSettings(
            32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        )
        embedding = encoder(clip_pixels(image, settings)).image_embeds
    concatenated = seen.network["sample"][:, 4:]
    torch.testing.assert_close(concatenated[:2], mode.expand(2, -1, -1, -1), atol=1e-4, rtol=0)
    assert not concatenated[2:].any()
    layer = load_file(
        random_priors / "zero123/clip_camera_projection/diffusion_pytorch_model.safetensors"
    )
    turn = np.deg2rad([45.0, 120.0])
    fall = np.deg2rad(10.0 - np.array([-30.0, 30.0]))
    offset = np.stack([fall, np.sin(turn), np.cos(turn), [0.5, 0.5]], axis=1)
    both = torch.cat([embedding.expand(2, -1), torch.tensor(offset).float()], dim=1)
    token = F.linear(both, layer["proj.weight"], layer["proj.bias"])
    text = seen.network["encoder_hidden_states"]
    torch.testing.assert_close(text[:2], token[:, None], atol=1e-4, rtol=0)
    assert text.shape == (4, 1, 32) and not text[2:].any()
    assert not hasattr(prior, "encoder")  # the image encoder isn't kept


def test_stable_zero123_is_told_the_references_angle_from_above(build):
    """Numbers worked out by hand: no distance."""
    prior = build("stable-zero123", cond_elevation_deg=30.0)
    for distance in (1.5, 3.0):
        numbers = prior.camera_numbers(
            torch.tensor([0.0]), torch.tensor([90.0]), torch.tensor([distance]), (30.0, 0.0, 2.0)
        )
        expected = torch.tensor([[np.pi / 6, 1.0, 0.0, np.pi / 3]]).float()
        torch.testing.assert_close(numbers, expected, atol=1e-6, rtol=0)


def test_zero123_says_which_image_is_missing(build):
    with pytest.raises(FileNotFoundError, match=r"nothing-here\.png"):
        build("zero123", cond_image_path="nothing-here.png")


# ---- clips


@pytest.fixture
def no_sampling(monkeypatch):
    """The VAE's mode for a sample, so that latents can be compared."""
    encode = ImageCodec.encode
    monkeypatch.setattr(
        ImageCodec, "encode", lambda codec, images: encode(codec, images, mode=True)
    )


def test_a_clip_keeps_its_frames_in_order(priors, no_sampling):
    prior = priors["zeroscope"]
    images = torch.rand(6, 3, SIZE, SIZE)
    z = prior.to_latents(prior.prepare(images, FixedPrompt(), cameras(6, 3))[0])
    assert z.shape == (2, 4, 3, 8, 8)
    for clip in range(2):
        for frame in range(3):
            image = images[3 * clip + frame][None]
            alone = prior.vae.encode(2 * image - 1).latent_dist.mean * 0.18215
            torch.testing.assert_close(z[clip, :, frame], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("keep", [1, 2, 4, 7, -1])
def test_low_ram_vae_leaves_gradient_on_exactly_n_frames(build, no_sampling, keep):
    prior = build("zeroscope", low_ram_vae=keep)
    rgb, camera = torch.rand(8, 16, 16, 3), cameras(8, 4)
    images = rgb.permute(0, 3, 1, 2)
    z = prior.to_latents(prior.prepare(images, FixedPrompt(), camera)[0])
    large = F.interpolate(images, (SIZE, SIZE), mode="bilinear")
    full = prior.codec.encode(large)
    torch.testing.assert_close(z.transpose(1, 2).flatten(0, 1), full, atol=1e-4, rtol=0)
    chosen = set()
    for _ in range(4):
        touched = watch(prior, rgb, **camera).rgb_grad.flatten(1).any(1).reshape(2, 4)
        expected = 4 if keep < 0 else min(keep, 4)
        assert touched.sum(1).tolist() == [expected, expected]
        chosen.add(tuple(touched.flatten().tolist()))
    assert len(chosen) > 1 or keep in (4, 7, -1)  # other frames in other steps


def test_one_clip_is_assumed_without_num_frames(priors):
    seen = watch(priors["zeroscope"], torch.rand(3, 8, 8, 3), **cameras(3))
    assert seen.z.shape == (1, 4, 3, 8, 8)


@pytest.mark.parametrize("name", ["zeroscope", "image-to-video", "controlnet-tile"])
@pytest.mark.parametrize("n, frames", [(6, 4), (4, 5), (4, 0), (0, 4)])
def test_frames_have_to_make_whole_clips(priors, name, n, frames):
    camera = cameras(n) | {"num_frames": frames}
    with pytest.raises(ValueError, match=f"{n} frames don't make clips of num_frames={frames}"):
        priors[name](torch.rand(n, 8, 8, 3), FixedPrompt(), **camera)


def test_both_halves_see_the_clips_own_first_frame_without_a_graph(priors):
    prior, rgb = priors["image-to-video"], torch.rand(8, SIZE, SIZE, 3)
    seen = watch(prior, rgb, **cameras(8, 4))
    with torch.no_grad():
        first = prior.codec.encode(rgb[::4].permute(0, 3, 1, 2), mode=True)  # scaled
    shown = seen.network["sample"][:, 4:].unflatten(0, (2, 2))  # [half clip 4 F h w]
    torch.testing.assert_close(shown, first[None, :, :, None].expand_as(shown))
    assert not seen.condition["channels"].requires_grad


def test_a_clip_may_be_wider_than_high(build):
    """ZeroScope's shape, 576 x 320, scaled down."""
    prior = build("zeroscope", width=72, height=40)
    seen = watch(prior, torch.rand(4, 10, 18, 3), **cameras(4, 4))
    assert seen.z.shape == (1, 4, 4, 5, 9) and seen.rgb_grad.flatten(1).any(1).all()


# ---- tile


def test_tile_takes_random_squares_and_shows_them_to_the_controlnet(priors):
    prior, prompt = priors["controlnet-tile"], FixedPrompt()
    rgb = torch.rand(8, 20, 32, 3)
    pairs = set()
    for _ in range(6):
        seen = watch(prior, rgb, prompt, **cameras(8, 4))
        control, text = seen.condition["control"], seen.condition["control_tokens"]
        assert not control.requires_grad and control.shape == (4 * 2, 3, SIZE, SIZE)
        # gradient on two frames of each clip, inside the centred 20 x 20 square
        touched = seen.rgb_grad.abs().sum(-1) > 0
        frames = touched.flatten(1).any(1)
        assert frames.reshape(2, 4).sum(1).tolist() == [2, 2]
        columns = touched[frames].any(0).any(0)
        assert columns.nonzero().flatten().tolist() == list(range(6, 26))
        # the ControlNet sees these frames, in both halves
        squares = rgb[:, :, 6:26].permute(0, 3, 1, 2)
        squares = F.interpolate(squares, (SIZE, SIZE), mode="bilinear", align_corners=False)
        for half in control.chunk(2):
            distances = torch.cdist(half.flatten(1), squares.flatten(1))
            assert set(distances.argmin(1).tolist()) == set(frames.nonzero().flatten().tolist())
            assert distances.min(1).values.max() < 1e-3
        pairs.add(tuple(frames.tolist()))
        best, nothing = text.chunk(2)
        assert torch.equal(best, prior.control_tokens[0].expand_as(best))
        assert torch.equal(nothing, prior.control_tokens[1].expand_as(nothing))
    assert len(pairs) > 1


def test_tile_controlnet_reads_best_quality(priors, random_priors):
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = random_priors / "sd"
    tokens = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    ids = tokens(["best quality", ""], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(ids.input_ids)[0]
    torch.testing.assert_close(
        priors["controlnet-tile"].control_tokens, expected, atol=1e-5, rtol=0
    )


def test_tile_residuals_come_from_the_controlnet(build, priors):
    """At scale 0 the ControlNet is silent and the answer is plain Stable Diffusion's."""
    prior = build("controlnet-tile", conditioning_scale=0.0)
    seen = watch(prior, torch.rand(4, 8, 8, 3), **cameras(4, 4))
    unet = seen.network
    with torch.no_grad():
        plain = prior.network(
            unet["sample"], unet["t"], encoder_hidden_states=unet["encoder_hidden_states"]
        ).sample
    torch.testing.assert_close(seen.answer, plain)
    prior = priors["controlnet-tile"]
    with torch.no_grad():
        steered = prior.predict_noise(unet["sample"], unet["t"], seen.condition)
    assert not torch.allclose(steered, plain, atol=1e-2)


@pytest.mark.parametrize("size, frames, expected", [(96, 1, (1, 4, 12, 12)), (32, 9, (4, 4, 4, 4))])
def test_tile_size_and_number_of_frames(build, size, frames, expected):
    prior = build("controlnet-tile", fixed_size=size, fixed_frames=frames)
    seen = watch(prior, torch.rand(4, 8, 8, 3), **cameras(4, 4))
    assert seen.z.shape == expected


def test_frames_that_a_tile_prior_encodes_beside_each_other_are_what_they_are_alone(
    build, monkeypatch
):
    images, said, given = torch.rand(4, 8, 8, 3, requires_grad=True), [], []
    for beside in (1, 2):
        prior = build(
            "controlnet-tile", fixed_size=32, fixed_frames=2, vae_chunk=0, vae_beside=beside
        )
        encode = prior.vae.encode
        monkeypatch.setattr(
            prior.vae, "encode", lambda x, e=encode: (given.append(len(x)), e(x))[1]
        )
        torch.manual_seed(3)
        loss = prior(images, FixedPrompt(), **cameras(4, 4))["loss_sds"]
        said.append((loss.detach(), *torch.autograd.grad(loss, images)))
    assert given == [1, 1, 2]
    for alone, together in zip(*said, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


# ---- bad input


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("image", {"size": 60}, r"size is 60.*multiple of 8.*64"),
        ("image", {"size": 0}, "size is 0.*between 1"),
        ("image", {"min_step_percent": 0.9}, r"min_step_percent is 0\.9 and max_step_percent 0\.6"),
        ("image", {"weighting_strategy": "sdss"}, r"'sdss'.*dreamfusion.*sds"),
        (
            "image",
            {"pretrained_model_name_or_path": "zero123"},
            "takes 8 channels.*needs one with 4",
        ),
        ("image", {"pretrained_model_name_or_path": "text-to-video"}, "holds a UNet3DCondition"),
        ("zero123", {"pretrained_model_name_or_path": "sd"}, "takes 4 channels.*needs one with 8"),
        ("zeroscope", {"pretrained_model_name_or_path": "sd"}, "holds a UNet2DConditionModel"),
        ("image-to-video", {"unet_name_or_path": "controlnet-tile"}, "holds a ControlNetModel"),
        ("zeroscope", {"width": 60}, "width is 60"),
        ("zeroscope", {"height": 100}, "height is 100.*multiple of 8"),
        ("zeroscope", {"low_ram_vae": 0}, "low_ram_vae is 0.*-1, or between 1"),
        ("zeroscope", {"low_ram_vae": -2}, "low_ram_vae is -2"),
        ("controlnet-tile", {"fixed_size": 100}, "fixed_size is 100"),
        ("image", {"denoising_steps": -1}, "denoising_steps is -1.*between 0"),
        ("image", {"denoising_steps": 2, "grad_clip": 1.0}, "grad_clip is 1.*denoising_steps 2"),
        ("controlnet-tile", {"fixed_frames": 0}, "fixed_frames is 0"),
    ],
)
def test_bad_settings_are_named(build, name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


@every_prior
def test_only_colours_are_taken(priors, name):
    with pytest.raises(ValueError, match=r"\(4, 8, 8, 4\).*\[N H W 3\]"):
        priors[name](torch.rand(4, 8, 8, 4), FixedPrompt(), **cameras(4, TABLE[name].frames))


@every_prior
def test_guidance_of_the_conditional_half_alone_asks_the_network_for_no_more(
    build, priors, name, monkeypatch
):
    scale = 0.0 if TABLE[name].start == "cond" else 1.0
    prior, row = build(name, guidance_scale=scale), TABLE[name]
    rgb, camera = torch.rand(row.n, SIZE, SIZE, 3), cameras(row.n, row.frames)
    torch.manual_seed(5)
    half = watch(prior, rgb, **camera)
    monkeypatch.setattr(sds, "is_conditional", lambda *asked: False)
    torch.manual_seed(5)
    whole = watch(prior, rgb, **camera)
    assert len(half.answer) == len(half.z) == len(whole.answer) / 2
    torch.testing.assert_close(half.z_grad, whole.z_grad, atol=1e-5, rtol=1e-4)


# ---- denoising to a target


@every_prior
def test_denoising_pulls_pictures_to_what_the_network_makes_of_them(build, name, monkeypatch):
    """The target by DDIM's formula and the VAE as diffusers has it."""
    at_half = {"min_step_percent": 0.5, "max_step_percent": 0.5}
    prior, row = build(name, denoising_steps=2, **at_half), TABLE[name]
    seen: dict = {"t": []}
    prepare, encode, guided = prior.prepare, prior.to_latents, prior.guided_noise

    def noting_pictures(*args):
        pictures, condition = prepare(*args)
        seen.update(pictures=pictures)
        return pictures, condition

    def noting_latents(pictures):
        seen.update(z=encode(pictures))
        return seen["z"]

    def noting_noise(z_t, t, condition):
        seen.setdefault("z_t", z_t)
        seen["t"].append(t)
        seen[int(t[0])] = guided(z_t, t, condition)
        return seen[int(t[0])]

    monkeypatch.setattr(prior, "prepare", noting_pictures)
    monkeypatch.setattr(prior, "to_latents", noting_latents)
    monkeypatch.setattr(prior, "guided_noise", noting_noise)
    rgb = torch.rand(row.n, SIZE, SIZE, 3, requires_grad=True)
    out = prior(rgb, FixedPrompt(), **cameras(row.n, row.frames))
    out["loss_fit"].backward()
    assert not seen["z"].requires_grad and seen["z"].shape == row.latents
    assert [t.unique().tolist() for t in seen["t"]] == [[500], [250]]
    z_t = seen["z_t"]
    for t, then in ((500, ALPHA_BAR[250]), (250, torch.tensor(1.0))):
        clean = (z_t - (1 - ALPHA_BAR[t]).sqrt() * seen[t]) / ALPHA_BAR[t].sqrt()
        z_t = then.sqrt() * clean + (1 - then).sqrt() * seen[t]
    model = prior.cfg.pretrained_model_name_or_path
    whole = AutoencoderKL.from_pretrained(model, subfolder="vae")
    frames = z_t.transpose(1, 2).flatten(0, 1) if z_t.ndim == 5 else z_t
    with torch.no_grad():
        decoded = whole.decode(frames / whole.config.scaling_factor).sample
    target = (decoded / 2 + 0.5).clamp(0, 1).view_as(seen["pictures"])
    expected = (seen["pictures"] - target).square().mean()
    torch.testing.assert_close(out["loss_fit"], expected, rtol=1e-3, atol=1e-6)
    assert rgb.grad.isfinite().all() and rgb.grad.any()


# ---- what both halves of guidance have in common


@every_prior
def test_a_prior_whose_halves_share_their_start_has_the_same_gradient(build, priors, name):
    assert not build(name, guidance_scale=0.0 if TABLE[name].start == "cond" else 1.0).shares_halves
    prior = build(name)
    if not prior.shares_halves:
        assert "zero123" in name
        return
    row = TABLE[name]
    rgb, camera = torch.rand(row.n, SIZE, SIZE, 3), cameras(row.n, row.frames)
    gradients = []
    for _ in range(2):
        torch.manual_seed(5)
        gradients.append(watch(prior, rgb, **camera).z_grad)
        for network in prior.networks:
            share_halves(network)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["image", "zero123", "stable-zero123"])
def test_what_is_recorded_draws_and_says_what_the_step_does(build, name, clip):
    prior = build(name, grad_clip=clip)
    prompt = () if "zero123" in name else (FixedPrompt(),)

    def step():
        torch.manual_seed(3)
        rgb = torch.rand(2, 48, 48, 3, requires_grad=True)
        said = prior(rgb, *prompt, **cameras(2))
        return said, torch.autograd.grad(said["loss_sds"], rgb)[0], torch.rand(1)

    plain, calls = step(), []

    @torch.no_grad()
    def recorded(inputs):  # as speed.Recorded, without a CUDA graph
        calls.append(inputs)
        return prior.score_of(inputs)

    prior.recorded_score = recorded
    torch.testing.assert_close(step(), plain, rtol=0, atol=0)
    assert len(calls) == 1
