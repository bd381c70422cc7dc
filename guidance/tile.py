"""Tile prior: Stable Diffusion with the tile ControlNet, which keeps the layout of a rendered frame
and redraws its detail. Guidance is uncond + scale (text - uncond) with scale 7.5, one t a frame in
0.02..0.98 of the timesteps, w(t) = 1 - alpha_bar.

Stable Diffusion reads the personalised prompt; the ControlNet sees the rendered frame itself
(detached) and has a text of its own, "best quality" (nothing in the unconditional half).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import threestudio
import torch
from diffusers import ControlNetModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..bounds import bounded, path_of
from ..pretrained.embedding_cache import read_texts
from . import sds
from .codecs import ImageCodec
from .conditions import Condition, both
from .distillation import PromptedDistillation
from .latents import centre_square, clip_length, random_order, resize


@threestudio.register("animate124-controlnet-tile-guidance")
class TileGuidance(PromptedDistillation):
    """A few frames of each clip, each one sample: [B*F H W 3] -> [B*n 4 size/8 size/8]."""

    @dataclass
    class Config(PromptedDistillation.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
        # folder or hub id
        controlnet_name_or_path: str = path_of("model", "lllyasviel/control_v11f1e_sd15_tile")
        guidance_scale: float = 7.5  # of classifier-free guidance
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        weighting_strategy: str = bounded("sds", names=tuple(sds.WEIGHTS))  # w(t) = 1 - alpha_bar
        view_dependent_prompting: bool = False  # ", front view" and so on, by the frame's camera
        # pixels on a side, of the VAE's input and of the control image
        fixed_size: int = bounded(1024, 1, 2**14)
        # random frames of each clip that are distilled in a step
        fixed_frames: int = bounded(2, 1, 2**16)
        # images that keep the VAE's graph at once, the rest is redone; 0: all
        vae_chunk: int = bounded(1, 0)
        # ... and that go through the VAE beside each other, the rest after them: a little faster
        vae_beside: int = bounded(1, 1)
        control_prompt: str = "best quality"  # what the ControlNet reads
        conditioning_scale: float = 1.0  # of the ControlNet's residuals

    cfg: Config
    codec: ImageCodec
    only_text_differs: ClassVar[bool] = True

    def configure(self) -> None:
        super().configure()
        self.codec.check_size(fixed_size=self.cfg.fixed_size)
        self.controlnet = self.load(ControlNetModel, self.cfg.controlnet_name_or_path)
        prompts = [self.cfg.control_prompt, ""]
        model = self.cfg.pretrained_model_name_or_path
        texts = read_texts(model, prompts, device=self.device)
        self.control_tokens = texts.embeddings  # [2 L D]

    def load_codec(self, model: str) -> ImageCodec:
        codec = cast(ImageCodec, super().load_codec(model))
        codec.pixels = self.cfg.vae_beside * self.cfg.fixed_size**2
        return codec

    @property
    def networks(self) -> list[nn.Module]:
        return [self.network, self.controlnet]

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "K 3 S S"], Condition]:
        length = clip_length(len(images), camera.get("num_frames"))
        starts = torch.arange(0, len(images), length, device=images.device)[:, None]  # [B 1]
        order = random_order(len(starts), length, images.device)
        rows = (starts + order[:, : self.cfg.fixed_frames]).flatten()
        frames = resize(centre_square(images[rows]), self.cfg.fixed_size, self.cfg.fixed_size)
        condition = self.text_condition(prompt_utils, camera, rows) | {
            "control_tokens": self.control_tokens.repeat_interleave(len(rows), dim=0),
            # in its own memory order the convolutions would round otherwise
            "control": both(frames.detach().contiguous()),
        }
        return frames, condition

    def predict_noise(
        self, z_t: Float[Tensor, "K2 4 h w"], t: Int[Tensor, " K2"], condition: Condition
    ) -> Float[Tensor, "K2 4 h w"]:
        z_t = z_t.to(self.dtype)
        down, middle = self.controlnet(
            z_t,
            t,
            encoder_hidden_states=condition["control_tokens"].to(self.dtype),
            controlnet_cond=condition["control"].to(self.dtype),
            conditioning_scale=self.cfg.conditioning_scale,
            return_dict=False,
        )
        return self.network(
            z_t,
            t,
            encoder_hidden_states=condition["tokens"].to(self.dtype),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
