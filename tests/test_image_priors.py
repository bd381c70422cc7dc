"""The image prior with models of Stable Diffusion 1's and 2's kind, tiny and random: a call is a
step that the model's pipeline takes.
"""

import json
import shutil

import diffusers
import pytest
import threestudio
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from guidance_table import FixedPrompt, cameras, watch
from pipeline_step import one_step

SIZE = 64
PARTS = {
    "vae": diffusers.AutoencoderKL,
    "unet": diffusers.UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "scheduler": diffusers.DDIMScheduler,
}


@pytest.fixture
def folder(random_priors, tmp_path, request):
    """1: noise; 2: velocity, and what else Stable Diffusion 2.1's UNet has."""
    shutil.copytree(random_priors / "sd", tmp_path / "sd")
    if request.param == "2.1":
        path = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
        stated = json.loads(path.read_text()) | {"prediction_type": "v_prediction"}
        path.write_text(json.dumps(stated))
        path = tmp_path / "sd" / "unet" / "config.json"
        stated = {k: v for k, v in json.loads(path.read_text()).items() if k[0] != "_"}
        stated |= {"use_linear_projection": True, "attention_head_dim": [2, 4]}
        shutil.rmtree(path.parent)
        diffusers.UNet2DConditionModel(**stated).save_pretrained(path.parent)
    return tmp_path / "sd"


def step_of_the_pipeline(folder, z_t, t, scale, prompt):
    """What its pipeline then takes for clean."""
    parts = {k: kind.from_pretrained(folder, subfolder=k) for k, kind in PARTS.items()}
    pipe = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    seen = one_step(pipe, timesteps=t)
    pipe(
        prompt_embeds=prompt.side[None],
        negative_prompt_embeds=prompt.uncond[None],
        latents=z_t,
        guidance_scale=scale,
        height=SIZE,
        width=SIZE,
        num_inference_steps=1,
        output_type="latent",
    )
    return seen["z"]


@pytest.mark.parametrize("folder", ["1.5", "2.1"], indirect=True)
def test_a_call_is_a_step_of_the_pipeline(folder):
    fraction = 0.4
    at = {"min_step_percent": fraction, "max_step_percent": fraction, "guidance_scale": 7.0}
    config = {"pretrained_model_name_or_path": str(folder), "size": SIZE, **at}
    config["view_dependent_prompting"] = False
    prior, prompt = threestudio.find("animate124-image-guidance")(config), FixedPrompt()
    seen = watch(prior, torch.rand(1, SIZE, SIZE, 3), prompt, **cameras(1))
    z = step_of_the_pipeline(folder, seen.z_t, seen.t, 7.0, prompt)
    alpha_bar = prior.noise.alphas_cumprod[seen.t[0]]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    eps = (seen.z_t - alpha * seen.z) / sigma
    eps_hat = (seen.z_t - alpha * z) / sigma
    expected = (1 - alpha) * (eps_hat - eps)
    torch.testing.assert_close(seen.z_grad, expected, atol=2e-3, rtol=1e-3)
