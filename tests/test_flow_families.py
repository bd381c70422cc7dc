"""Video models of rectified flow, tiny and random, of diffusers' own classes: a call of a guidance
is one step of its pipeline, with the pipeline's latents, text, time and way of guiding.
"""

import math
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import threestudio
import torch
from animate124.guidance import distillation
from PIL import Image

from guidance_table import Row, cameras, check, rectified_flow, velocity_of_flow, watch

diffusers = pytest.importorskip("diffusers", minversion="0.35")  # older ones lack a family

from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

import tiny_models as tiny

PROMPT, NEGATIVE = "a panda is dancing", "a fox"
# of 4 tokens: mu goes through (1024, 0.95) and (4096, 2.05)
LTX_SHIFT = math.exp(0.95 + (2.05 - 0.95) * (4 - 1024) / (4096 - 1024))


# that Wan 2.2's folder lacks and its image pipeline asks for
NONE_OF_THESE = {"image_encoder": None, "image_processor": None}


@dataclass
class Family:
    row: Row
    write: object  # its folder
    pipeline: str
    prompts: str  # its prompt processor
    size: tuple[int, int]  # width and height in pixels
    text_length: int
    shift: float
    config: dict = field(default_factory=dict)


def flow_times(shift):
    """0.02 and 0.98 of the way, shifted."""
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (0.02, 0.98))


def flow_row(scale, latents, frames, t, **options):
    flow = {"path": rectified_flow, "noise_of": velocity_of_flow}
    return Row(t, "uncond", scale, lambda a: 1 - a, latents, frames, **flow, **options)


FAMILIES = {
    "wan": Family(
        flow_row(25, (2, 4, 2, 2, 4), 5, flow_times(3)),
        tiny.write_wan,
        "WanPipeline",
        "wan",
        (32, 16),
        512,
        3.0,
    ),
    "wan-ti2v": Family(
        flow_row(5, (2, 4, 2, 2, 4), 5, flow_times(5), clean=1),
        tiny.write_wan_ti2v,
        "WanImageToVideoPipeline",
        "wan",
        (64, 32),
        512,
        5.0,
    ),
    "ltx": Family(
        flow_row(5, (2, 4, 2, 1, 2), 9, flow_times(LTX_SHIFT), clean=1),
        tiny.write_ltx,
        "LTXImageToVideoPipeline",
        "ltx",
        (64, 32),
        128,
        LTX_SHIFT,
    ),
    "skyreels": Family(
        flow_row(5, (2, 16, 2, 4, 4), 5, flow_times(5)),
        tiny.write_skyreels,
        "SkyReelsV2ImageToVideoPipeline",
        "wan",
        (32, 32),
        512,
        5.0,
    ),
    "wan-vace": Family(
        flow_row(5, (2, 4, 2, 2, 4), 5, flow_times(3)),
        tiny.write_vace,
        "WanVACEPipeline",
        "wan",
        (32, 16),
        512,
        3.0,
    ),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The families' model folders, in a working directory of their own (for the text cache)."""
    place = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield {name: family.write(place / name) for name, family in FAMILIES.items()}


def build(folders, name, **changes):
    family = FAMILIES[name]
    (width, height), model = family.size, str(folders[name])
    config = {"pretrained_model_name_or_path": model, "width": width, "height": height}
    return threestudio.find(f"animate124-{name}-guidance")(config | family.config | changes)


def read(folders, name):
    kind = threestudio.find(f"animate124-{FAMILIES[name].prompts}-prompt-processor")
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    return kind({"pretrained_model_name_or_path": str(folders[name]), **texts})()


@pytest.fixture(scope="module")
def prompts(folders):
    return {name: read(folders, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def priors(folders):
    return {name: build(folders, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def pipelines(folders):
    """diffusers' own, of the same folders."""
    return {
        name: getattr(diffusers, family.pipeline).from_pretrained(
            folders[name], **NONE_OF_THESE if name == "wan-ti2v" else {}
        )
        for name, family in FAMILIES.items()
    }


@every_family
def test_latents_get_the_gradient_of_the_table(priors, prompts, name):
    prior, row = priors[name], FAMILIES[name].row
    prior.prepare(torch.rand(row.n, 3, 8, 8), prompts[name], cameras(row.n, row.frames))
    check(prior, row, prompts[name])  # of clips of this size: LTX's noise depends on it


@every_family
def test_the_text_is_the_pipelines(pipelines, prompts, name, monkeypatch):
    family, text = FAMILIES[name], prompts[name]
    # diffusers 0.42's WanImageToVideoPipeline takes ftfy to be installed
    plain = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(sys.modules[type(pipelines[name]).__module__], "ftfy", plain, raising=False)
    own = pipelines[name].encode_prompt(
        PROMPT, NEGATIVE, device="cpu", max_sequence_length=family.text_length
    )
    if name == "ltx":  # its network is told what is padding
        masks = [x for x in own if x.dtype == torch.bool]
        assert torch.equal(torch.cat(masks), text.masks[:2])
    ours = text.text_embeddings, text.uncond_text_embeddings
    for mine, its in zip(ours, (x for x in own if x.is_floating_point()), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


# ---- one step of each pipeline, as its denoising loop takes it


def wan_step(pipe, z_t, time, tokens, clip, half=None):
    """The velocity of one half."""
    return pipe.transformer(z_t, time.expand(len(z_t)), tokens, return_dict=False)[0]


def wan_ti2v_step(pipe, z_t, time, tokens, clip, half):
    """With a clean first frame, whose tokens have time 0."""
    picture = pipe.video_processor.preprocess(clip[0].numpy())
    height, width = clip.shape[1:3]
    _, clean, mask = pipe.prepare_latents(
        picture, 1, z_t.shape[1], height, width, len(clip), dtype=z_t.dtype, device="cpu"
    )
    shown = (1 - mask) * clean + mask * z_t
    times = (mask[0][0][:, ::2, ::2] * time).flatten()[None]
    return pipe.transformer(shown, times, tokens, return_dict=False)[0]


def ltx_step(pipe, z_t, time, tokens, clip, half):
    """Packed into tokens, those of a clean first frame at time 0; the frame is a sample, so it is
    that of the call."""
    height, width = clip.shape[1:3]
    shown = torch.cat([half["first"], z_t[:, :, 1:]], dim=2)
    _, mask = pipe.prepare_latents(
        clip[:1].movedim(-1, 1), 1, z_t.shape[1], height, width, len(clip), torch.float32, "cpu"
    )
    (frames, rows, columns), rate = z_t.shape[2:], 25
    answer = pipe.transformer(
        pipe._pack_latents(shown),
        tokens,
        time[:, None] * (1 - mask),
        half["mask"],
        num_frames=frames,
        height=rows,
        width=columns,
        rope_interpolation_scale=(8 / rate, 32, 32),
        return_dict=False,
    )[0]
    return pipe._unpack_latents(answer, frames, rows, columns)


def skyreels_step(pipe, z_t, time, tokens, clip, half):
    """The first frame's latents and mask beside the noisy ones, and what CLIP sees of it."""
    height, width = clip.shape[1:3]
    picture = pipe.video_processor.preprocess(clip[:1].numpy())
    _, beside = pipe.prepare_latents(
        picture, 1, z_t.shape[1], height, width, len(clip), torch.float32, "cpu"
    )
    image = pipe.encode_image(clip[0].mul(255).round().byte().numpy(), "cpu")
    return pipe.transformer(
        torch.cat([z_t, beside], dim=1), time, tokens, image, return_dict=False
    )[0]


def vace_step(pipe, z_t, time, tokens, clip, half):
    """What is kept, what changes and the mask, for a first frame with grey behind it."""
    video = torch.full_like(clip, 0.5)
    video[0] = clip[0]
    mask = torch.ones_like(clip)
    mask[0] = 0
    height, width = clip.shape[1:3]
    video, mask, images = pipe.preprocess_conditions(
        video.numpy()[None], mask.numpy()[None], None, 1, height, width, len(clip), torch.float32
    )
    control = pipe.prepare_video_latents(video, mask, images, device="cpu")
    control = torch.cat([control, pipe.prepare_masks(mask, images)], dim=1)
    return pipe.transformer(z_t, time, tokens, control_hidden_states=control, return_dict=False)[0]


STEPS = {
    "wan": wan_step,
    "wan-ti2v": wan_ti2v_step,
    "ltx": ltx_step,
    "skyreels": skyreels_step,
    "wan-vace": vace_step,
}


def scheduler_at(pipe, fraction, shift, tokens):
    """The pipeline's own way of noising, with one step from there to the data."""
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=[fraction])
        return scheduler
    kind, config = type(pipe.scheduler), pipe.scheduler.config
    scheduler = kind.from_config(config, shift_terminal=None)
    lengths = config.base_image_seq_len, config.max_image_seq_len
    mu = calculate_shift(tokens, *lengths, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=[fraction], mu=mu)
    return scheduler


def halves_of(condition):
    """The conditional and the unconditional one."""
    return [{k: v.chunk(2)[i] for k, v in condition.items()} for i in (0, 1)]


def is_a_sample(latents, posterior):
    """Whether these are one of that posterior, normalised."""
    n = latents.shape[1] // len(tiny.MEAN)
    mean, std = (torch.tensor(x * n).view(1, -1, 1, 1, 1) for x in (tiny.MEAN, tiny.STD))
    drawn = (latents * std + mean - posterior.mean) / posterior.std
    return abs(drawn.mean()) < 0.6 and 0.4 < drawn.std() < 1.6


@every_family
@pytest.mark.parametrize("fraction", [0.3, 0.8])
def test_a_call_is_a_step_of_the_pipeline(folders, pipelines, prompts, name, fraction):
    family, pipe = FAMILIES[name], pipelines[name]
    at = {"min_step_percent": fraction, "max_step_percent": fraction}
    prior = build(folders, name, view_dependent_prompting=False, **at)
    (width, height), frames, scale = family.size, family.row.frames, 7.0
    prior.cfg.guidance_scale = scale
    clip = torch.randint(256, (frames, height, width, 3)) / 255  # CLIP's processor takes bytes
    seen = watch(prior, clip, prompts[name], **cameras(frames, frames))
    # the latents: the VAE's, normalised as the pipeline undoes it
    pixels = pipe.video_processor.preprocess_video(clip.numpy()[None])
    assert is_a_sample(seen.z, pipe.vae.encode(pixels).latent_dist)
    if name == "ltx":
        assert is_a_sample(
            seen.condition["first"][:1], pipe.vae.encode(pixels[:, :, :1]).latent_dist
        )
    # the step: noise at the scheduler's own sigma, both halves, guidance, and on to sigma 0
    scheduler = scheduler_at(pipe, fraction, family.shift, seen.z[0, 0].numel())
    time, sigma = scheduler.timesteps[:1], scheduler.sigmas[0]
    torch.testing.assert_close(seen.shown[1].flatten()[-1:], time)
    eps = (seen.z_t - (1 - sigma) * seen.z) / sigma
    torch.testing.assert_close(scheduler.scale_noise(seen.z, time, eps), seen.z_t)
    texts = prompts[name].text_embeddings, prompts[name].uncond_text_embeddings
    with torch.no_grad():
        halves = zip(texts, halves_of(seen.condition), strict=True)
        cond, uncond = (STEPS[name](pipe, seen.z_t, time, x, clip, half) for x, half in halves)
    velocity = uncond + scale * (cond - uncond)
    clean = scheduler.step(velocity, time[0], seen.z_t).prev_sample
    # our gradient is of that same clean clip
    eps_hat = (seen.z_t - (1 - sigma) * clean) / sigma
    weight = sigma**2 / (sigma**2 + (1 - sigma) ** 2)
    expected = weight * (eps_hat - eps)
    expected[:, :, : family.row.clean] = 0  # of a first frame that has no noise
    torch.testing.assert_close(seen.z_grad, expected, atol=1e-4, rtol=1e-3)


@every_family
def test_every_frame_that_is_shown_has_its_gradient(priors, prompts, name):
    frames = FAMILIES[name].row.frames
    seen = watch(
        priors[name], torch.rand(frames, 8, 8, 3), prompts[name], **cameras(frames, frames)
    )
    assert seen.rgb_grad.isfinite().all() and seen.rgb_grad.flatten(1).any(1).all()


# ---- what isn't taken


@every_family
def test_clips_of_other_lengths_are_refused_with_the_near_ones(priors, prompts, name):
    factor = priors[name].frame_factor
    assert priors[name].codec.frame_factor == factor
    for wrong in (factor, factor + 2):
        low = (wrong - 1) // factor * factor + 1
        message = rf"have {wrong} frames.*num_frames={low} or {low + factor}"
        with pytest.raises(ValueError, match=message):
            priors[name](torch.rand(wrong, 8, 8, 3), prompts[name], **cameras(wrong, wrong))
        with pytest.raises(ValueError, match=message):  # before anything is loaded
            type(priors[name]).check_frames(wrong)


@every_family
@pytest.mark.parametrize("side", ["width", "height"])
def test_sizes_that_make_no_whole_tokens_are_refused(folders, priors, name, side):
    token = priors[name].codec.pixel_factor * priors[name].patch
    wrong = token + priors[name].codec.pixel_factor // 2
    with pytest.raises(ValueError, match=rf"{side} is {wrong}.*a multiple of {token}"):
        build(folders, name, **{side: wrong})


@every_family
def test_a_clip_in_parts_has_the_same_gradient(folders, priors, prompts, name):
    n, (width, height) = 2 * priors[name].frame_factor + 1, FAMILIES[name].size
    clip, grads = torch.rand(n, height, width, 3), []
    for prior in (priors[name], build(folders, name, vae_chunk=priors[name].frame_factor)):
        torch.manual_seed(2)
        grads.append(watch(prior, clip, prompts[name], **cameras(n, n)).rgb_grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["wan-ti2v", "ltx"])
def test_a_clip_of_its_clean_frame_alone_is_refused(priors, prompts, name):
    with pytest.raises(ValueError, match=r"one frame.*num_frames.*first_frame=none"):
        priors[name](torch.rand(1, 20, 32, 3), prompts[name], **cameras(1, 1))


def test_a_part_of_a_clip_is_whole_latent_frames(folders):
    with pytest.raises(ValueError, match=r"vae_chunk is 3.* 4 frames at a time"):
        build(folders, "wan", vae_chunk=3)


@every_family
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gives_nearly_the_same_gradient(
    folders, priors, prompts, monkeypatch, name, dtype, error
):
    """docs/priors.md has these numbers."""
    n, grads = FAMILIES[name].row.frames, []
    monkeypatch.setattr(distillation, "weights_dtype", lambda *asked: dtype)
    for prior in (priors[name], build(folders, name)):
        torch.manual_seed(3)
        seen = watch(prior, torch.rand(n, 16, 16, 3), prompts[name], **cameras(n, n))
        assert seen.z.dtype == seen.out["loss_sds"].dtype == torch.float32
        grads.append(seen.rgb_grad)
    assert (grads[1] - grads[0]).norm() < error * grads[0].norm()


def test_a_model_of_another_kind_is_refused(folders, random_priors, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'transformer'.*another kind of model"):
        build({"wan": random_priors / "text-to-video"}, "wan")
    for name, (words, options) in {
        "twice": ("two transformers", {"boundary_ratio": 0.9}),
        "image": ("takes 8 channels.*needs one with 4", {}),
    }.items():
        folder = tiny.write_wan(tmp_path / name, **options)
        if name == "image":
            tiny.wan_transformer(8).save_pretrained(folder / "transformer")
        with pytest.raises(ValueError, match=words):
            build({"wan": folder}, "wan")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    tiny.wan_transformer().save_pretrained(folder / "transformer")
    with pytest.raises(ValueError, match=r"no model of rectified flow.*DDPMScheduler"):
        build({"wan": folder}, "wan")


def test_an_older_diffusers_is_told_which_version_has_the_model(folders, monkeypatch):
    monkeypatch.setattr(diffusers, "WanTransformer3DModel", None)
    with pytest.raises(ValueError, match=r"has no WanTransformer3DModel.*diffusers 0\.33 or newer"):
        build(folders, "wan")


# ---- the first frame


def test_a_model_that_knows_no_first_frame_is_refused(folders):
    with pytest.raises(ValueError, match=r"expand_timesteps.*animate124-wan-guidance"):
        build(folders | {"wan-ti2v": folders["wan"]}, "wan-ti2v")


def alone(pipe, name, z_t, time, condition, clip):
    """The velocity of a clip without a first frame, as the family's pipeline of text has it."""
    tokens = condition["tokens"]
    if name == "wan-ti2v":
        return wan_step(pipe, z_t, time[:1], tokens, clip)
    if name == "ltx":
        sizes = dict(zip(("num_frames", "height", "width"), z_t.shape[2:], strict=True))
        shown = pipe._pack_latents(z_t), tokens, time, condition["mask"]
        scale = {"rope_interpolation_scale": (8 / 25, 32, 32), "return_dict": False}
        return pipe._unpack_latents(pipe.transformer(*shown, **sizes, **scale)[0], *sizes.values())
    height, width = clip.shape[1:3]
    video, mask, images = pipe.preprocess_conditions(
        None, None, None, 1, height, width, len(clip), torch.float32
    )
    control = pipe.prepare_video_latents(video, mask, images, device="cpu")
    control = torch.cat([control, pipe.prepare_masks(mask, images)], dim=1).expand(2, *[-1] * 4)
    return pipe.transformer(z_t, time, tokens, control_hidden_states=control, return_dict=False)[0]


@pytest.mark.parametrize("name", ["wan-ti2v", "ltx", "wan-vace"])
def test_without_a_first_frame_the_model_is_one_of_text(folders, pipelines, prompts, name):
    prior = build(folders, name, first_frame="none", view_dependent_prompting=False)
    n, (width, height) = FAMILIES[name].row.frames, FAMILIES[name].size
    clip = torch.rand(n, height, width, 3)
    seen = watch(prior, clip, prompts[name], **cameras(n, n))
    assert "first" not in seen.condition and seen.z_grad[:, :, 0].any()
    with torch.no_grad():
        own = alone(pipelines[name], name, *seen.shown, seen.condition, clip)
    torch.testing.assert_close(seen.answer, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wan-ti2v", "ltx", "skyreels", "wan-vace"])
def test_the_given_picture_is_the_first_frame_where_a_clip_starts_with_it(
    folders, prompts, tmp_path, name
):
    rgba = torch.zeros(64, 64, 4, dtype=torch.uint8)
    rgba[16:48, 8:40] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)
    Image.fromarray(rgba.numpy()).save(tmp_path / "_rgba.png")
    prior = build(folders, name, cond_image_path=str(tmp_path / "_rgba.png"))
    n, rgb = FAMILIES[name].row.frames, torch.rand(2 * FAMILIES[name].row.frames, 8, 8, 3)
    camera = cameras(2 * n, n) | {"frame_times": torch.linspace(0, 1, n).repeat(2)}
    camera["elevation"], camera["azimuth"] = torch.zeros(2 * n), torch.zeros(2 * n)
    camera["azimuth"][n] = 90.0  # the second clip starts elsewhere
    shown = []
    encode = prior.codec.encode_clips
    prior.codec.encode_clips = lambda clips, **how: shown.append(clips) or encode(clips, **how)
    clips, _ = prior.prepare(rgb.permute(0, 3, 1, 2), prompts[name], camera)
    first = shown[-1][:, 0]
    assert torch.equal(first[0], prior.picture[0]) and torch.equal(first[1], clips[1, 0])
