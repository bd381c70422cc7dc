"""Stable Video Diffusion, tiny and random, of diffusers' own classes: a call of the guidance is a
step that the model's pipeline takes.
"""

import json
from pathlib import Path

import animate124
import pytest
import threestudio
import torch
from animate124.guidance import distillation
from animate124.guidance.noise import EDM
from animate124.guidance.speed import prepare_network
from animate124.guidance.svd import clip_view
from animate124.guidance.zero123_model import ClipSettings
from omegaconf import OmegaConf
from PIL import Image
from threestudio.launch import main, parser

from guidance_table import Row, cameras, check, watch
from pipeline_step import one_step

diffusers = pytest.importorskip("diffusers", minversion="0.24")  # older ones lack it

import tiny_models as tiny

WIDTH, HEIGHT, FRAMES = 48, 32, 4
SCALES = torch.linspace(1, 3, FRAMES)[:, None, None]


def eps_of_f(answer, z_t, alpha, sigma):
    """(z_t - z) / sigma of z = c_skip z_t + c_out F."""
    z = z_t / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * answer
    return (z_t - z) / sigma


ROW = Row(
    (EDM().time_at(0.02), EDM().time_at(0.98)),
    "uncond",
    SCALES,
    lambda a: 1 - a,
    latents=(2, 4, FRAMES, 16, 24),
    frames=FRAMES,
    path=lambda t: (torch.ones_like(t), t),
    noise_of=eps_of_f,
    seen_of=lambda z_t, sigma: z_t / (sigma**2 + 1).sqrt(),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_svd(tmp_path_factory.mktemp("svd"))


def build(folder, **changes):
    config = {"pretrained_model_name_or_path": str(folder), "width": WIDTH, "height": HEIGHT}
    return threestudio.find("animate124-svd-guidance")(config | changes)


@pytest.fixture(scope="module")
def prior(folder):
    return build(folder)


@pytest.fixture
def no_sampling(monkeypatch):
    """Posteriors give their mode; noise doesn't depend on where numbers lie in memory."""
    kind = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, dtype=x.dtype))


def test_latents_get_the_gradient_of_the_table(prior):
    seen = check(prior, ROW)
    assert seen.rgb_grad.flatten(1).any(1).all()  # of every frame
    assert seen.condition["ids"].tolist() == [[6.0, 127.0, pytest.approx(0.02)]] * 4


def step_of_the_pipeline(folder, z_t, sigma, scales, image):
    """The model's own pipeline for one step: its network's arguments and answer, and what it then
    takes for clean."""
    parts = {
        "unet": diffusers.UNetSpatioTemporalConditionModel,
        "vae": diffusers.AutoencoderKLTemporalDecoder,
        "scheduler": diffusers.EulerDiscreteScheduler,
        "image_encoder": type(tiny.clip_vision()),
        "feature_extractor": tiny.transformers.CLIPImageProcessor,
    }
    loaded = {k: kind.from_pretrained(folder, subfolder=k) for k, kind in parts.items()}
    pipe = diffusers.StableVideoDiffusionPipeline(**loaded)
    levels = {"sigmas": torch.cat([sigma, sigma.new_zeros(1)]), "timesteps": 0.25 * sigma.log()}
    seen = one_step(pipe, **levels)

    def hook(module, args, kwargs, output):
        seen.update(network={"sample": args[0], "t": args[1], **kwargs}, answer=output[0])

    pipe.unet.register_forward_hook(hook, with_kwargs=True)
    torch.manual_seed(5)  # as the guidance began with
    pipe(
        image,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=1,
        min_guidance_scale=scales[0],
        max_guidance_scale=scales[1],
        latents=z_t.transpose(1, 2) / (sigma**2 + 1).sqrt(),  # its initial noise, which it scales
        output_type="latent",
    )
    return seen


@pytest.mark.usefixtures("no_sampling")
@pytest.mark.parametrize("fraction", [0.2, 0.9])
def test_a_call_is_a_step_of_the_pipeline(folder, fraction):
    at = {"min_step_percent": fraction, "max_step_percent": fraction}
    prior = build(folder, **at, first_guidance_scale=2.0, guidance_scale=5.0)
    clip = torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3)) / 255
    torch.manual_seed(5)
    seen = watch(prior, clip, **cameras(FRAMES, FRAMES))
    image = Image.fromarray((clip[0] * 255).round().byte().numpy())
    its = step_of_the_pipeline(folder, seen.z_t, seen.t, (2.0, 5.0), image)
    for mine, key in (("sample", "sample"), ("t", "t"), *((k, k) for k in MORE)):
        theirs = its["network"][key]
        ours = seen.network[mine]
        ours = ours.flip(0) if ours.ndim > 1 else ours[0]  # one time for both halves
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        seen.answer.transpose(1, 2).flip(0), its["answer"], atol=1e-4, rtol=1e-4
    )
    sigma, eps = seen.t[0], (seen.z_t - seen.z) / seen.t[0]
    eps_hat = (seen.z_t - its["z"].transpose(1, 2)) / sigma
    weight = sigma**2 / (sigma**2 + 1)
    torch.testing.assert_close(seen.z_grad, weight * (eps_hat - eps), atol=1e-3, rtol=1e-3)


MORE = ("encoder_hidden_states", "added_time_ids")


@pytest.mark.parametrize("size", [(300, 500), (96, 64), (224, 224)])
def test_clip_sees_what_it_sees_in_the_pipeline(size):
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd

    image = torch.rand(2, 3, *size)
    reference = svd._resize_with_antialiasing(image * 2 - 1, (224, 224)) / 2 + 0.5
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    reference = (reference - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    ours = clip_view(image, ClipSettings(224, mean, std))
    torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_gives_nearly_the_same_gradient(folder, prior, monkeypatch, dtype, most):
    monkeypatch.setattr(distillation, "weights_dtype", lambda *asked: dtype)
    half = build(folder)
    assert half.network.dtype == half.vae.dtype == dtype and half.half_dtype == torch.float16
    clip, found = torch.rand(FRAMES, HEIGHT, WIDTH, 3), []
    for each in (prior, half):
        torch.manual_seed(3)
        found.append(watch(each, clip, **cameras(FRAMES, FRAMES)).rgb_grad)
    print("svd", dtype, float((found[1] - found[0]).norm() / found[0].norm()))
    assert (found[1] - found[0]).norm() < most * found[0].norm()


def test_the_network_answers_the_same_with_the_forwards_of_the_graph(folder):
    found = []
    for fast in (False, True):
        prior = build(folder)
        if fast:
            prepare_network(prior.network, "graph")
        torch.manual_seed(3)
        clip = torch.rand(FRAMES, HEIGHT, WIDTH, 3)
        found.append(watch(prior, clip, **cameras(FRAMES, FRAMES)).answer)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_denoised_clips_become_pictures(folder):
    prior = build(folder, denoising_steps=2)
    rgb = torch.rand(FRAMES, HEIGHT, WIDTH, 3, requires_grad=True)
    loss = prior(rgb, **cameras(FRAMES, FRAMES))["loss_fit"]
    loss.backward()
    assert loss.isfinite() and rgb.grad.flatten(1).any(1).all()


@pytest.mark.slow
def test_a_stage_trains_without_a_prompt_processor(folder, tmp_path, monkeypatch):
    """As its YAML has it: the prompt names the trial alone."""
    monkeypatch.chdir(tmp_path)
    root = Path(animate124.__file__).parent
    yaml = OmegaConf.load(root / "configs/toy/deformation-stage2.yaml")
    published = OmegaConf.load(root / "configs/animate124-deformation-stage2-svd.yaml").system
    for key in ("guidance", "guidance_type", "prompt_processor"):
        yaml.system[key] = published[key]
    yaml.system.guidance.update(pretrained_model_name_or_path=str(folder), width=32, height=32)
    del yaml.system["prompt_processor_type"]
    OmegaConf.save(yaml, "stage2.yaml")
    sizes = "num_frames: 4, num_frames_factor: 1, width_vid: 8, height_vid: 8, eval_width: 8"
    options = [f"data.single_view={{{sizes}, eval_height: 8}}", "system.weights=null"]
    options += ["trainer.max_steps=3", "trainer.accelerator=cpu"]
    options += ["system.geometry.pos_encoding_config.freeze_canonical=false"]
    options += [f"data.image.image_path={root}/load/toy-panda/_rgba.png"]
    options += ["system.prompt_processor.prompt=a panda is dancing"]
    args = parser().parse_args(["--config", "stage2.yaml", "--train"])
    trial = Path(main(args, options, extension="animate124"))
    saved = torch.load(trial / "ckpts" / "last.ckpt", weights_only=True)
    moved = [w for key, w in saved["state_dict"].items() if ".deformation.lattices" in key]
    assert trial.name.startswith("a_panda_is_dancing") and saved["global_step"] == 3
    assert max(weight.abs().max() for weight in moved) > 1e-4


# ---- what isn't taken


def test_clips_of_another_length_are_refused(prior):
    with pytest.raises(ValueError, match=r"have 5 frames.*made for 4.*num_frames=4"):
        prior(torch.rand(5, 8, 8, 3), **cameras(5, 5))


def test_models_of_other_kinds_are_refused(folder, random_priors, tmp_path):
    with pytest.raises(ValueError, match=r"holds a UNet3DConditionModel"):
        build(random_priors / "text-to-video")
    other = tiny.write_svd(tmp_path)
    tiny.svd_scheduler(prediction_type="epsilon").save_pretrained(other / "scheduler")
    with pytest.raises(ValueError, match=r"EDM's way \(it has prediction_type epsilon"):
        build(other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match=r"its class is DDIMScheduler.*Stable Video Diffusion"):
        build(other)


def test_an_older_diffusers_is_told_which_version_has_the_model(folder, monkeypatch):
    monkeypatch.setattr(diffusers, "UNetSpatioTemporalConditionModel", None)
    with pytest.raises(ValueError, match=r"no UNetSpatioTemporal.*diffusers 0\.24 or newer"):
        build(folder)
