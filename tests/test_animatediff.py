"""AnimateDiff with SparseCtrl, tiny and random, of diffusers' own classes: a call of the guidance
is a step that its pipeline takes.
"""

import pytest
import threestudio
import torch
from animate124.guidance import distillation
from animate124.guidance.speed import prepare_network

from guidance_table import FixedPrompt, Row, cameras, check, epsilon, watch
from pipeline_step import one_step

diffusers = pytest.importorskip("diffusers", minversion="0.30")  # older ones lack SparseCtrl

import tiny_models as tiny

WIDTH, HEIGHT, FRAMES = 64, 32, 4
ALPHA_BAR = (1 - torch.linspace(0.00085, 0.012, 1000)).cumprod(0)  # not Stable Diffusion's


def row(scale=7.5):
    def path(t):
        return ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()

    latents = (2, 4, FRAMES, HEIGHT // 8, WIDTH // 8)
    return Row((20, 980), "uncond", scale, lambda a: 1 - a, latents, FRAMES, 0, path, epsilon)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, random_priors):
    folder = tmp_path_factory.mktemp("animatediff")
    tiny.write_parts(folder, {"motion": tiny.motion_adapter, "sparse": tiny.sparsectrl})
    return {
        "pretrained_model_name_or_path": str(random_priors / "sd"),
        "motion_adapter_name_or_path": str(folder / "motion"),
        "sparsectrl_name_or_path": str(folder / "sparse"),
    }


def build(folders, **changes):
    kind = threestudio.find("animate124-animatediff-guidance")
    return kind({**folders, "width": WIDTH, "height": HEIGHT, **changes})


@pytest.fixture(scope="module")
def prior(folders):
    return build(folders)


@pytest.mark.parametrize("shown", [True, False])
def test_latents_get_the_gradient_of_the_table(folders, prior, shown):
    seen = check(prior if shown else build(folders, sparsectrl_name_or_path=None), row())
    assert seen.rgb_grad.flatten(1).any(1).all()  # of every frame
    assert ("control" in seen.condition) == shown


def step_of_the_pipeline(folders, z_t, t, scale, image, prompt):
    """AnimateDiff's own pipeline for one step: the networks' arguments, the UNet's answer, and what
    it then takes for clean."""
    sd, motion, sparse = folders.values()
    pipe = diffusers.AnimateDiffSparseControlNetPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(sd, subfolder="vae"),
        text_encoder=tiny.transformers.CLIPTextModel.from_pretrained(sd, subfolder="text_encoder"),
        tokenizer=tiny.transformers.CLIPTokenizer.from_pretrained(sd, subfolder="tokenizer"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(sd, subfolder="unet"),
        motion_adapter=diffusers.MotionAdapter.from_pretrained(motion),
        controlnet=diffusers.SparseControlNetModel.from_pretrained(sparse),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False
        ),
    )
    seen = one_step(pipe, timesteps=t)

    def hook(name):
        def note(module, args, kwargs, output):
            arguments = dict(zip(("sample", "t"), args, strict=False)) | kwargs
            seen.update({name: arguments, "answer": output[0]})

        return note

    pipe.controlnet.register_forward_hook(hook("sparsectrl"), with_kwargs=True)
    pipe.unet.register_forward_hook(hook("network"), with_kwargs=True)
    pipe(
        prompt_embeds=prompt.side[None],
        negative_prompt_embeds=prompt.uncond[None],
        conditioning_frames=image,
        controlnet_frame_indices=[0],
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=1,
        guidance_scale=scale,
        latents=z_t,
        output_type="latent",
    )
    return seen


@pytest.mark.parametrize("fraction", [0.2, 0.9])
def test_a_call_is_a_step_of_the_pipeline(folders, monkeypatch, fraction):
    kind = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean)
    at = {"min_step_percent": fraction, "max_step_percent": fraction}
    prior, prompt = build(folders, view_dependent_prompting=False, **at), FixedPrompt()
    control = {}
    prior.sparsectrl.register_forward_hook(
        lambda module, args, kwargs, output: control.update(kwargs), with_kwargs=True
    )
    clip = torch.rand(FRAMES, HEIGHT, WIDTH, 3)
    seen = watch(prior, clip, prompt, **cameras(FRAMES, FRAMES))
    image = clip[:1].permute(0, 3, 1, 2)
    its = step_of_the_pipeline(folders, seen.z_t, seen.t, 7.5, image, prompt)
    for key in ("controlnet_cond", "conditioning_mask"):
        for half in control[key].chunk(2):
            torch.testing.assert_close(half, its["sparsectrl"][key], atol=1e-5, rtol=1e-5)
    halves = its["answer"].chunk(2)
    torch.testing.assert_close(seen.answer, torch.cat([halves[1], halves[0]]), atol=1e-4, rtol=1e-4)
    alpha, sigma = row().path(seen.t[0])
    eps = (seen.z_t - alpha * seen.z) / sigma
    eps_hat = (seen.z_t - alpha * its["z"]) / sigma
    torch.testing.assert_close(seen.z_grad, sigma**2 * (eps_hat - eps), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gives_nearly_the_same_gradient(folders, prior, monkeypatch, dtype, most):
    monkeypatch.setattr(distillation, "weights_dtype", lambda *asked: dtype)
    half = build(folders)
    assert half.network.dtype == half.sparsectrl.dtype == dtype
    clip, found = torch.rand(FRAMES, HEIGHT, WIDTH, 3), []
    for each in (prior, half):
        torch.manual_seed(3)
        found.append(watch(each, clip, **cameras(FRAMES, FRAMES)).rgb_grad)
    print("animatediff", dtype, float((found[1] - found[0]).norm() / found[0].norm()))
    assert (found[1] - found[0]).norm() < most * found[0].norm()


def test_the_networks_answer_the_same_with_the_forwards_of_the_graph(folders):
    found = []
    for fast in (False, True):
        prior = build(folders)
        for network in prior.networks if fast else ():
            prepare_network(network, "graph")
        torch.manual_seed(3)
        clip = torch.rand(FRAMES, HEIGHT, WIDTH, 3)
        found.append(watch(prior, clip, **cameras(FRAMES, FRAMES)).answer)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


# ---- what isn't taken


def test_clips_that_are_too_long_are_refused(folders, tmp_path):
    tiny.write_parts(tmp_path, {"": lambda: tiny.motion_adapter(motion_max_seq_length=3)})
    prior = build(folders, motion_adapter_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match=r"have 4 frames.*at most 3.*num_frames=3 or fewer"):
        prior(torch.rand(4, 8, 8, 3), FixedPrompt(), **cameras(4, 4))


def test_models_of_other_kinds_are_refused(folders, random_priors, tmp_path):
    tiny.write_parts(tmp_path / "m", {"": lambda: tiny.motion_adapter(block_out_channels=(8,))})
    with pytest.raises(ValueError, match=r"motion modules of .* don't fit into the UNet of"):
        build(folders, motion_adapter_name_or_path=str(tmp_path / "m"))
    with pytest.raises(ValueError, match=r"holds a SparseControlNetModel, but a MotionAdapter"):
        build(folders, motion_adapter_name_or_path=folders["sparsectrl_name_or_path"])
    scribble = {"use_simplified_condition_embedding": False}
    tiny.write_parts(tmp_path / "s", {"": lambda: tiny.sparsectrl(**scribble)})
    with pytest.raises(ValueError, match=r"SparseCtrl of scribbles or depth"):
        build(folders, sparsectrl_name_or_path=str(tmp_path / "s"))


def test_an_older_diffusers_is_told_which_version_has_the_model(folders, monkeypatch):
    monkeypatch.setattr(diffusers, "MotionAdapter", None)
    with pytest.raises(ValueError, match=r"no MotionAdapter.*diffusers 0\.23 or newer"):
        build(folders)
