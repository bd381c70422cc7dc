"""Video prior: AnimateDiff (Guo et al. 2024), motion modules inside Stable Diffusion 1.5, with
SparseCtrl (Guo et al. 2024), a ControlNet that is shown the clip's first frame. Guidance is uncond
+ scale (text - uncond) with scale 7.5, one t a clip in 0.02..0.98 of the timesteps, w(t) = 1 -
alpha_bar.

The motion modules were trained with betas that grow linearly, not as Stable Diffusion's do: the
noise is theirs. SparseCtrl sees the first frame (first_frames.py) as a sample of the VAE's
posterior, scaled, and a mask of where there is one; it never sees the noisy latents.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..bounds import path_of
from ..pretrained import models
from .clips import FramewiseDistillation
from .conditions import Condition, both
from .first_frames import FirstFrameDistillation
from .noise import DDPM, Noise


@threestudio.register("animate124-animatediff-guidance")
class AnimateDiffGuidance(FirstFrameDistillation, FramewiseDistillation):
    """A clip is one sample: [B*F H W 3], frames of a clip adjacent -> latents [B 4 F h w]."""

    @dataclass
    class Config(FirstFrameDistillation.Config, FramewiseDistillation.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
        # folders or hub ids; without the second one the first frame isn't shown
        motion_adapter_name_or_path: str = path_of(
            "model", "guoyww/animatediff-motion-adapter-v1-5-3"
        )
        sparsectrl_name_or_path: str | None = path_of("model", "guoyww/animatediff-sparsectrl-rgb")
        conditioning_scale: float = 1.0  # of SparseCtrl's residuals
        guidance_scale: float = 7.5  # of classifier-free guidance

    cfg: Config
    network_class: ClassVar[type | str] = UNet2DConditionModel

    def configure(self) -> None:
        super().configure()
        name = self.cfg.sparsectrl_name_or_path
        self.sparsectrl = None if name is None else self.load("SparseControlNetModel", name)
        if self.sparsectrl and not self.sparsectrl.use_simplified_condition_embedding:
            raise ValueError(
                f"{name} is a SparseCtrl of scribbles or depth; the one of pictures will do "
                "(guoyww/animatediff-sparsectrl-rgb), or sparsectrl_name_or_path=null."
            )

    def load_network(self) -> Any:
        unet = super().load_network()
        adapter = self.load("MotionAdapter", self.cfg.motion_adapter_name_or_path)
        kind: Any = models.class_of_diffusers("UNetMotionModel")
        try:
            network = kind.from_unet2d(unet, adapter)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"The motion modules of {self.cfg.motion_adapter_name_or_path} don't fit into the "
                f"UNet of {self.cfg.pretrained_model_name_or_path} ({error}). Those of Stable "
                "Diffusion 1.5 and a model of that kind will do."
            ) from error
        return network.to(self.device).requires_grad_(False).eval()

    @property
    def networks(self) -> list[nn.Module]:
        return [self.network, *([] if self.sparsectrl is None else [self.sparsectrl])]

    def load_noise(self, model: str) -> Noise:
        stated = models.load_component(DDPMScheduler, model, "scheduler").config
        scheduler: Any = DDPMScheduler.from_config(stated, beta_schedule="linear")
        return DDPM(scheduler.alphas_cumprod.to(self.device), stated["prediction_type"])

    def usual_size(self) -> tuple[int, int]:
        return 512, 512

    def check_length(self, n_frames: int) -> None:
        """A ValueError for clips that are longer than the motion modules' places."""
        most = self.network.config.motion_max_seq_length
        if n_frames > most:
            raise ValueError(
                f"Clips have {n_frames} frames, but {self.cfg.motion_adapter_name_or_path} has "
                f"places for at most {most}: take data.single_view.num_frames={most} or fewer; "
                "AnimateDiff's own were made for 16."
            )

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        later = clips.shape[1] - 1
        self.check_length(later + 1)
        frames = self.first_frames(clips, camera)
        if self.sparsectrl is None or frames is None:
            return {}
        first = self.codec.encode(frames)[:, :, None]
        is_there = torch.ones_like(first[:, :1])
        control = torch.cat([first, is_there], dim=1)
        return {"control": both(F.pad(control, (0, 0, 0, 0, 0, later)))}

    def predict_noise(
        self, z_t: Float[Tensor, "B2 4 F h w"], t: Int[Tensor, " B2"], condition: Condition
    ) -> Float[Tensor, "B2 4 F h w"]:
        z_t = z_t.to(self.dtype)
        tokens = condition["tokens"].to(self.dtype).repeat_interleave(z_t.shape[2], dim=0)
        residuals: dict[str, Any] = {}
        if self.sparsectrl is not None and "control" in condition:
            control = condition["control"].to(self.dtype)
            down, middle = self.sparsectrl(
                z_t,
                t,
                encoder_hidden_states=tokens,
                controlnet_cond=control[:, :-1],
                conditioning_mask=control[:, -1:],
                conditioning_scale=self.cfg.conditioning_scale,
                return_dict=False,
            )
            residuals["down_block_additional_residuals"] = down
            residuals["mid_block_additional_residual"] = middle
        return self.network(z_t, t, encoder_hidden_states=tokens, **residuals).sample
