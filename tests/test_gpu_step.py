"""One step of each stage on a GPU: with everything that is fast, its loss and gradients are those
of the plain torch path, up to what float16 does to either.

The reference is the plain path with float32 priors. Plain: diffusers' VAE as it is, no CUDA graphs,
the hash grid's torch definition, all samples at once and all of them shaded.
"""

from pathlib import Path

import animate124
import pytest
import threestudio
import torch
from animate124.data.image_video_datamodule import with_event
from animate124.guidance import distillation
from animate124.guidance.codecs import ImageCodec
from animate124.renderer import nerf_volume_renderer, samples
from threestudio.utils.config import load_config

CONFIGS = Path(animate124.__file__).parent / "configs"
SIZE, VIEW, FRAMES = 64, 32, 4  # pixels of the VAEs' input, and of renders; frames of a clip
MODEL = "pretrained_model_name_or_path"
PLAIN = ["system.renderer.train_chunk_size=0", "system.geometry.pos_encoding_config.backend=torch"]
SAVING = ["system.speed.beside=false", "system.guidance_3d.weights_wait=true"]
FAST = ["system.renderer.train_chunk_size=5000", "system.speed.compile=graph"]


def overrides(stage, priors, folder):
    sizes = ["width", "height", *(["width_vid", "height_vid"] if stage > 1 else [])]
    torch.save({"<token>": torch.ones(32)}, folder / "token.bin")
    guidance = {1: "sd", 2: "text-to-video", 3: "text-to-video"}[stage]
    pairs = {
        "data.image.image_path": CONFIGS.parent / "load/toy-panda/_rgba.png",
        **{f"data.image.{side}": VIEW for side in ("width", "height")},
        **{f"data.single_view.{side}": VIEW for side in sizes},
        "system.prompt_processor.prompt": "a panda is dancing",
        f"system.guidance.{MODEL}": priors / guidance,
        f"system.guidance_3d.{MODEL}": priors / "zero123",
        "system.guidance_3d.size": SIZE,
        "system.weights": "null",
        "system.renderer.num_samples_per_ray": 64,
        "system.geometry.density_blob_scale": 30,
        "system.geometry.pos_encoding_config.log2_hashmap_size": 12,
        "exp_root_dir": folder,
    }
    if stage == 1:
        return pairs | {"system.guidance.size": SIZE}
    pairs |= {f"system.guidance.{side}": SIZE for side in ("width", "height")}
    pairs |= {"data.single_view.num_frames": FRAMES, "data.single_view.zero_rate": 1.0}
    pairs["data.single_view.mirror_rate"] = 0.0  # so that the image's losses and Zero123 take part
    if stage == 2:
        return pairs
    return pairs | {
        f"system.guidance_cn.{MODEL}": priors / "sd",
        "system.guidance_cn.controlnet_name_or_path": priors / "controlnet-tile",
        "system.guidance_cn.fixed_size": SIZE,
        "system.guidance_cn.vae_chunk": 1,
        "system.prompt_processor_cn.prompt": "a <token> is dancing",
        "system.prompt_processor_cn.learned_embeds_path": folder / "token.bin",
    }


def step(stage, pairs, *others):
    """Losses and gradients of a stage's first step."""
    config = "animate124-stage1" if stage == 1 else f"animate124-stage{stage}-ms"
    arguments = [*(f"{key}={value}" for key, value in pairs.items()), *others]
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), cli_args=arguments)
    torch.manual_seed(5)
    data = threestudio.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    system = threestudio.find(cfg.system_type)(cfg.system)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    system.to(device).train().on_fit_start()
    with torch.no_grad():  # something to see beside the blob
        for grid in (system.geometry.encoding.encoding.encoding,):
            grid.params.normal_(0, 0.3, generator=torch.Generator(device).manual_seed(1))
    batch = system.transfer_batch_to_device(data.train_dataset.collate(0), torch.device(device), 0)
    if set(FAST) <= set(others):  # as the data module does where it makes batches on a GPU
        batch = with_event(batch, torch.device(device))
    torch.manual_seed(6)
    system.renderer.update_step(0, 0)
    losses = []
    for _ in range(2):  # what was recorded in the first is replayed in the second
        torch.manual_seed(7)
        system.zero_grad()
        said = system.training_step(batch, 0)
        said["loss"].backward()
        losses.append({key: value.item() for key, value in said.items()})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-3)
    gradients = {
        name: parameter.grad.double().cpu()
        for name, parameter in system.geometry.named_parameters()
        if parameter.grad is not None
    }
    return losses[1], gradients


def no_noise(codec, images):
    size = [side // codec.pixel_factor for side in images.shape[2:]]
    dtype = next(codec.vae.parameters()).dtype
    return torch.zeros(len(images), codec.channels, *size, dtype=dtype, device=images.device)


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("compile", "options"),
    [
        pytest.param("graph", [], marks=pytest.mark.gpu),
        pytest.param("graph", SAVING, marks=pytest.mark.gpu),
        pytest.param("inductor", [], marks=pytest.mark.gpu),
    ],
)
def test_a_fast_step_is_the_plain_step(
    stage, compile, options, random_priors, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    latents = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample"
    monkeypatch.setattr(latents, lambda self, generator=None: self.mode())
    monkeypatch.setattr(ImageCodec, "noise", no_noise)
    pairs = overrides(stage, random_priors, tmp_path)
    monkeypatch.setattr(samples, "MANY_SAMPLES", 100)
    fast = step(stage, pairs, *FAST, f"system.speed.compile={compile}", *options)
    monkeypatch.setattr(distillation, "slim", lambda vae, **options: vae)
    monkeypatch.setattr(nerf_volume_renderer, "MIN_SHADED_TRANSMITTANCE", 0.0)
    monkeypatch.setattr(samples, "MANY_SAMPLES", 10**9)
    plain = step(stage, pairs, *PLAIN)
    names = ["guidance", "guidance_3d", "guidance_cn"][: 2 if stage < 3 else 3]
    exact = step(
        stage, pairs, *PLAIN, *(f"system.{name}.half_precision_weights=false" for name in names)
    )
    for key, value in exact[0].items():
        error, allowed = (abs(losses[key] - value) for losses in (fast[0], plain[0]))
        assert error <= 3 * allowed + 5e-3 * abs(value), (key, fast[0], plain[0], exact[0])
    assert fast[1].keys() == plain[1].keys() == exact[1].keys()
    for name, value in exact[1].items():
        error, allowed = (distance(gradients[name], value) for gradients in (fast[1], plain[1]))
        print(f"{name}: {error:.1e} fast, {allowed:.1e} plain")
        assert error <= 2 * allowed + 5e-3, name
