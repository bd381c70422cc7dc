"""A video model of another family (rectified flow, a causal VAE of 4k + 1 frames, T5's text with a
mask, the first frame clean) is two leaves, a YAML and a row: all of it is here."""

from pathlib import Path

import animate124
import pytest
import threestudio
import torch
from animate124.guidance.codecs import CausalVideoCodec
from animate124.guidance.conditions import both
from animate124.guidance.distillation import PromptedDistillation
from animate124.guidance.latents import clip_length, resize
from animate124.guidance.noise import RectifiedFlow
from animate124.prompt_processors.prompts import PromptProcessor
from omegaconf import OmegaConf
from threestudio.launch import main, parser

from guidance_table import Row, cameras, check, rectified_flow, velocity_of_flow

diffusers = pytest.importorskip("diffusers", minversion="0.33")  # older ones know no flows
from tiny_models import ltx_transformer, wan_vae, write_text

ROOT = Path(animate124.__file__).parent


@threestudio.register("fake-flow-prompt-processor")
class FlowPrompts(PromptProcessor):
    text_length = 10


@threestudio.register("fake-flow-guidance")
class FlowGuidance(PromptedDistillation):
    network_class, network_folder = diffusers.LTXVideoTransformer3DModel, "transformer"

    def load_codec(self, model):
        return CausalVideoCodec(self.load(diffusers.AutoencoderKLWan, model, "vae"))

    def load_noise(self, model):
        return RectifiedFlow(shift=3.0)

    def prepare(self, images, prompt_utils, camera):
        length = clip_length(len(images), camera.get("num_frames"))
        text = self.text_condition(prompt_utils, camera, slice(None, None, length))
        clips = resize(images, 16, 16).unflatten(0, (-1, length))
        first = self.codec.encode_clips(clips[:, :1].detach(), mode=True)
        return clips, text | {"first": both(first)}

    def predict_noise(self, z_t, t, condition):
        frames, height, width = z_t.shape[2:]
        times = t.repeat_interleave(height * width, dim=1)
        inputs = z_t.flatten(2).mT, condition["tokens"], times, condition["mask"]
        answer = self.network(*inputs, frames, height, width).sample
        return answer.mT.unflatten(2, z_t.shape[2:])


TIMES, LATENTS = (0.06 / 1.04, 2.94 / 2.96), (2, 4, 2, 2, 2)  # 0.02 and 0.98, shifted
FLOW = {"frames": 5, "clean": 1, "path": rectified_flow, "noise_of": velocity_of_flow}
ROW = Row(TIMES, "uncond", 100, lambda a: 1 - a, LATENTS, **FLOW)


def test_a_new_family_is_two_leaves_a_yaml_and_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, part in (("transformer", ltx_transformer()), ("vae", wan_vae())):
        part.save_pretrained(tmp_path / name)
    model = {"pretrained_model_name_or_path": str(write_text(tmp_path))}
    prompt = FlowPrompts({**model, "prompt": "a panda is dancing"})()
    assert check(FlowGuidance(model), ROW, prompt).condition["mask"].sum(1).tolist() == [8, 8, 1, 1]
    fitted, rgb = FlowGuidance({**model, "denoising_steps": 2}), torch.rand(10, 16, 16, 3)
    said = fitted(rgb.requires_grad_(), prompt, **cameras(10, 5))
    assert torch.autograd.grad(said["loss_fit"], rgb)[0].unflatten(0, (2, 5)).any((2, 3, 4)).all()
    system = (yaml := OmegaConf.load(ROOT / "configs/toy/stage2.yaml")).system
    system.guidance_type, system.guidance = "fake-flow-guidance", model
    system.prompt_processor_type, system.weights = "fake-flow-prompt-processor", None
    OmegaConf.save(yaml, "stage2.yaml")
    size = "num_frames: 5, num_frames_factor: 1, width_vid: 8, eval_width: 8, eval_height: 8"
    options = [f"data.single_view={{{size}}}", "system.loss.lambda_3d_sd=0", "trainer.max_steps=3"]
    options += [f"data.image.image_path={ROOT}/load/toy-panda/_rgba.png", "trainer.accelerator=cpu"]
    args = parser().parse_args(["--config", "stage2.yaml", "--train"])
    folder = Path(main(args, options, extension="animate124"))
    saved = torch.load(folder / "ckpts" / "last.ckpt", weights_only=True)
    time_grid = saved["state_dict"]["geometry.encoding.encoding.encoding_time.params"]
    assert saved["global_step"] == 3 and time_grid.abs().max() > 1e-3
