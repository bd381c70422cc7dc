"""CogVideoX, tiny and random, of diffusers' own classes: a call of the guidance is a step that the
model's pipeline takes, with its latents, text, places, time and way of guiding.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import threestudio
import torch
from animate124.guidance import distillation
from animate124.guidance.cogvideox import placed, places_of

from guidance_table import Row, cameras, check, watch
from pipeline_step import one_step

diffusers = pytest.importorskip("diffusers", minversion="0.31")  # older ones lack the picture's

import tiny_models as tiny

PROMPT, NEGATIVE = "a panda is dancing", "a fox"
WIDTH, HEIGHT, FRAMES = 64, 32, 5
LATENTS = (2, 16, 2, 4, 8)


def levels(shift):
    """alpha and sigma by the paper: the SNR of Stable Diffusion's betas over `shift`, and sqrt of
    alpha_bar stretched until the last is 0 (Lin et al. 2024, algorithm 1)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    snr = (1 - betas).cumprod(0) / (1 - (1 - betas).cumprod(0)) / shift
    root = (snr / (1 + snr)).sqrt()
    alpha = ((root - root[-1]) * root[0] / (root[0] - root[-1])).float()
    return lambda t: (alpha[t], (1 - alpha[t] ** 2).sqrt())


def velocity(answer, z_t, alpha, sigma):
    return alpha * answer + sigma * z_t


def row(scale, shift):
    noise = {"path": levels(shift), "noise_of": velocity}
    return Row((20, 980), "uncond", scale, lambda a: 1 - a, LATENTS, FRAMES, **noise)


TABLE = {"2b": row(25, 3.0), "5b": row(25, 1.0), "5b-I2V": row(6, 1.0)}
every_model = pytest.mark.parametrize("name", TABLE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The models' folders, in a working directory of their own (for the text cache)."""
    place = tmp_path_factory.mktemp("cogvideox")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield {name: tiny.write_cogvideox(place / name, name) for name in TABLE}


def build(folder, **changes):
    kind = "cogvideox-image" if "I2V" in str(folder) else "cogvideox"
    config = {"pretrained_model_name_or_path": str(folder), "view_dependent_prompting": False}
    return threestudio.find(f"animate124-{kind}-guidance")(config | changes)


@pytest.fixture(scope="module")
def priors(folders):
    return {name: build(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def prompts(folders):
    kind = threestudio.find("animate124-cogvideox-prompt-processor")
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    return {
        name: kind({"pretrained_model_name_or_path": str(folder), **texts})()
        for name, folder in folders.items()
    }


@pytest.fixture
def no_sampling(monkeypatch):
    """Posteriors give their mode, here and in the pipelines."""
    kind = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean)


@every_model
def test_latents_get_the_gradient_of_the_table(priors, prompts, name):
    seen = check(priors[name], TABLE[name], prompts[name])
    assert seen.rgb_grad.flatten(1).any(1).all()  # of every frame
    assert prompts[name].text_embeddings.shape[1] == 226


@dataclass
class Step:
    """What a pipeline did in one step."""

    network: dict[str, Any]  # its arguments
    answer: torch.Tensor
    z: torch.Tensor  # what it then takes for clean


def step_of_the_pipeline(folder, z_t, t, scale, clip):
    """The model's own pipeline, run for one step from z_t at t."""
    index = diffusers.DiffusionPipeline.load_config(folder)
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(folder)
    seen = one_step(pipe, timesteps=t)

    def hook(module, args, kwargs, output):
        seen.update(network=kwargs, answer=output[0])

    pipe.transformer.register_forward_hook(hook, with_kwargs=True)
    image = {"image": clip[:1].permute(0, 3, 1, 2)} if "I2V" in str(folder) else {}
    pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        latents=z_t.transpose(1, 2),
        guidance_scale=scale,
        height=clip.shape[1],
        width=clip.shape[2],
        num_frames=len(clip),
        num_inference_steps=1,
        output_type="latent",
        **image,
    )
    return Step(**seen)


@pytest.mark.usefixtures("no_sampling")
@pytest.mark.parametrize(
    "name, width, height, frames, fraction",
    [
        ("2b", WIDTH, HEIGHT, FRAMES, 0.2),
        ("2b", 48, 48, 9, 0.9),
        ("5b", WIDTH, HEIGHT, FRAMES, 0.9),
        ("5b", 48, 64, 9, 0.2),
        ("5b-I2V", WIDTH, HEIGHT, FRAMES, 0.2),
        ("5b-I2V", WIDTH, HEIGHT, FRAMES, 0.9),
    ],
)
def test_a_call_is_a_step_of_the_pipeline(folders, prompts, name, width, height, frames, fraction):
    at = {"min_step_percent": fraction, "max_step_percent": fraction, "guidance_scale": 7.0}
    prior = build(folders[name], width=width, height=height, **at)
    clip = torch.rand(frames, height, width, 3)
    seen = watch(prior, clip, prompts[name], **cameras(frames, frames))
    its = step_of_the_pipeline(folders[name], seen.z_t, seen.t, 7.0, clip)
    with torch.no_grad():  # the latents, as its decoder undoes them
        pixels = (2 * clip - 1).permute(3, 0, 1, 2)[None]
        torch.testing.assert_close(prior.vae.encode(pixels).latent_dist.mean, seen.z / 0.7)
    for mine, key in (  # its unconditional half comes first
        (seen.network["sample"], "hidden_states"),
        (seen.network["encoder_hidden_states"], "encoder_hidden_states"),
        (seen.network["timestep"], "timestep"),
    ):
        theirs = its.network[key]
        torch.testing.assert_close(mine.flip(0), theirs, atol=1e-5, rtol=1e-5)
    assert (seen.network["image_rotary_emb"] is None) == (name == "2b")
    for mine, theirs in zip(
        seen.network["image_rotary_emb"] or (), its.network["image_rotary_emb"] or (), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    answer = seen.answer.transpose(1, 2).flip(0)
    torch.testing.assert_close(answer, its.answer, atol=1e-4, rtol=1e-4)
    alpha, sigma = TABLE[name].path(seen.t[0])
    eps = (seen.z_t - alpha * seen.z) / sigma
    eps_hat = (seen.z_t - alpha * its.z.transpose(1, 2)) / sigma
    torch.testing.assert_close(seen.z_grad, sigma**2 * (eps_hat - eps), atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("no_sampling")
def test_with_blocks_that_are_redone_the_gradient_is_the_same_and_less_is_kept(folders):
    found, kept = [], []
    clips = torch.rand(1, 17, 3, HEIGHT // 2, WIDTH // 2, requires_grad=True)
    for chunk in (0, 8):
        prior = build(folders["2b"], vae_chunk=chunk)
        sizes = []

        def keep(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            z = prior.to_latents(clips)
        found.append(torch.autograd.grad(z.square().sum(), clips)[0])
        kept.append(sum(sizes))
    torch.testing.assert_close(*found)
    assert kept[1] < kept[0] / 3


# ---- learned places, which the published 5B of a picture has


def test_learned_places_are_the_tables_own_for_the_trained_size():
    table = torch.randn(1, 7 + 3 * 4 * 6, 8)
    for frames in (1, 2, 3):  # a shorter clip has the first ones
        found = placed(table, 7, (4, 6), places_of((frames, 4, 6), (4, 6)))
        torch.testing.assert_close(found, table[:, : 7 + frames * 24], atol=1e-5, rtol=1e-5)


def test_learned_places_of_another_shape_are_the_middles():
    """A table that is linear in row and column gives away where it was read."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).flatten(0, 1)[None]
    found = placed(table, 0, (4, 6), places_of((1, 2, 2), (4, 6)))[0]
    # a square is the middle 4 x 4 of 4 x 6
    places = places_of((1, 2, 2), (4, 6))
    assert [x.tolist() for x in places[1:]] == [[0.0, 2.0], [1.0, 2.5]]
    expected = torch.cartesian_prod(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.5]))
    torch.testing.assert_close(found, expected)


def test_a_clip_of_another_size_changes_places_and_back(folders, priors, prompts):
    """diffusers would refuse the size, and take fresh sinusoids for another length."""
    prior = build(folders["5b-I2V"], width=32)
    table = priors["5b-I2V"].learned
    for frames, n in ((5, 2), (1, 1), (5, 2)):
        watch(prior, torch.rand(frames, 8, 8, 3), prompts["5b-I2V"], **cameras(frames, frames))
        assert prior.network.patch_embed.pos_embedding.shape[1] == 226 + n * 2 * 2
    assert table.shape[1] == 226 + 2 * 2 * 4
    with pytest.raises(ValueError, match=r"have 9 frames.*learned places for at most 5"):
        prior(torch.rand(9, 8, 8, 3), prompts["5b-I2V"], **cameras(9, 9))


# ---- precision


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gives_nearly_the_same_gradient(
    folders, priors, prompts, monkeypatch, name, dtype, most
):
    monkeypatch.setattr(distillation, "weights_dtype", lambda *asked: dtype)
    half = build(folders[name])
    assert half.network.dtype == half.vae.dtype == dtype and half.half_dtype == torch.bfloat16
    clip, found = torch.rand(FRAMES, HEIGHT, WIDTH, 3), []
    for prior in (priors[name], half):
        torch.manual_seed(3)
        found.append(watch(prior, clip, prompts[name], **cameras(FRAMES, FRAMES)).rgb_grad)
    difference = (found[1] - found[0]).norm() / found[0].norm()
    assert difference < most


# ---- what isn't taken


def test_clips_of_other_lengths_are_refused_with_the_near_ones(priors, prompts):
    with pytest.raises(ValueError, match=r"have 6 frames.*num_frames=5 or 9"):
        priors["2b"](torch.rand(6, 8, 8, 3), prompts["2b"], **cameras(6, 6))


def test_noise_alone_is_refused(folders, prompts):
    prior = build(folders["2b"], max_step_percent=1.0)
    with pytest.raises(ValueError, match=r"timestep 999 of 1000.*noise alone.*max_step_percent"):
        prior(torch.rand(FRAMES, 8, 8, 3), prompts["2b"], **cameras(FRAMES, FRAMES))


def test_models_of_other_kinds_are_refused(folders, random_priors, tmp_path):
    image = threestudio.find("animate124-cogvideox-image-guidance")
    with pytest.raises(ValueError, match=r"takes 16 channels.*needs one with 32"):
        image({"pretrained_model_name_or_path": str(folders["5b"])})
    with pytest.raises(FileNotFoundError, match=r"no folder 'transformer'"):
        build(random_priors / "text-to-video")
    later = {"patch_size_t": 2, "use_rotary_positional_embeddings": True}
    with pytest.raises(ValueError, match=r"is CogVideoX 1\.5.*CogVideoX-2b"):
        build(tiny.write_cogvideox(tmp_path / "later", "5b", **later))
    other = tiny.write_cogvideox(tmp_path / "other", "2b")
    diffusers.DDPMScheduler().save_pretrained(other / "scheduler")
    with pytest.raises(ValueError, match=r"its class is DDPMScheduler.*CogVideoX will do"):
        build(other)


def test_an_older_diffusers_is_told_which_version_has_the_model(folders, monkeypatch):
    monkeypatch.setattr(diffusers, "CogVideoXTransformer3DModel", None)
    with pytest.raises(ValueError, match=r"no CogVideoXTransformer3DModel.*0\.30 or newer"):
        build(folders["2b"])
