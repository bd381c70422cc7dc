"""Video prior: Stable Video Diffusion (Blattmann et al. 2023), which is shown a clip's first frame
and reads no sentence. Guidance is uncond + scale (cond - uncond) with a scale that grows from 1 at
the first frame to 3 at the last; one t a clip in 0.02..0.98 of EDM's way, w(t) = 1 - alpha_bar.

The first frame (first_frames.py) stands in twice: as its CLIP embedding, the only token, and as VAE
latents beside those of every frame (the mode, NOT scaled: so it was trained) of the picture with a
little noise. Both are zeros in the unconditional half. Three numbers say how the clip is to be:
frames a second less 1, how much moves (1 to 255), and that noise's strength.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from ..bounds import bounded, path_of
from ..pretrained import models
from .clips import FramewiseClips
from .codecs import ImageCodec
from .conditions import Condition, or_nothing
from .first_frames import RENDERED, FirstFrameDistillation
from .frozen_vae import slim
from .noise import EDM, Noise
from .zero123_model import ClipSettings, read_clip_settings


def blur(images: Float[Tensor, "N C H W"], sigma: float, dim: int) -> Float[Tensor, "N C H W"]:
    """A Gaussian of standard deviation `sigma` pixels along a dimension, cut off at two of them;
    borders are mirrored."""
    reach = max(int(4 * sigma), 3) // 2
    at = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-(at**2) / (2 * sigma**2)).exp()
    shape = [1, 1, 1, 1]
    shape[dim] = len(at)
    margins = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    channels = images.shape[1]
    kernel = (kernel / kernel.sum()).view(shape).expand(channels, -1, -1, -1)
    return F.conv2d(F.pad(images, margins, mode="reflect"), kernel, groups=channels)


def clip_view(images: Float[Tensor, "N 3 H W"], settings: ClipSettings) -> Float[Tensor, "N 3 P P"]:
    """Pictures in [0, 1] as SVD's CLIP is shown them: squeezed to a square, blurred before that by
    as much as they shrink; corners stay corners. Overshoots of the cubic aren't cut off."""
    for dim in (2, 3):
        shrinks = images.shape[dim] / settings.side
        images = blur(images, max((shrinks - 1) / 2, 1e-3), dim)
    size = (settings.side, settings.side)
    pixels = F.interpolate(images, size, mode="bicubic", align_corners=True)
    mean, std = (images.new_tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    return (pixels - mean) / std


class TemporalDecoderCodec(ImageCodec):
    """An image VAE whose decoder is shown the frames of a clip together."""

    @torch.no_grad()
    def decode_clips(self, latents: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B F 3 H W"]:
        n_frames = latents.shape[2]
        with torch.autocast(latents.device.type, enabled=False):
            frames = (latents / self.vae.config.scaling_factor).transpose(1, 2)
            frames = frames.to(next(self.vae.parameters()).dtype)
            clips = [self.vae.decode(clip, num_frames=n_frames).sample.float() for clip in frames]
        return (torch.stack(clips) / 2 + 0.5).clamp(0, 1)


@threestudio.register("animate124-svd-guidance")
class StableVideoDiffusionGuidance(FirstFrameDistillation, FramewiseClips):
    """A clip is one sample: [B*F H W 3], as many frames as the model was made for -> latents
    [B 4 F h w]. It needs no prompt."""

    @dataclass
    class Config(FirstFrameDistillation.Config, FramewiseClips.Config):
        pretrained_model_name_or_path: str = path_of(
            "model", "stabilityai/stable-video-diffusion-img2vid"
        )
        guidance_scale: float = 3.0  # of classifier-free guidance, at the last frame
        first_guidance_scale: float = 1.0  # ... and at the first; linear between
        first_frame: str = bounded(RENDERED, names=(RENDERED,))  # the network knows no clip without
        fps: int = bounded(7, 1, 1000)  # frames a second that the clip is to be taken for
        motion_bucket_id: int = bounded(127, 0, 2**16)  # how much is to move; it knows 1 to 255
        noise_aug_strength: float = bounded(0.02, 0, 100)  # noise on the first frame, in [-1, 1]

    cfg: Config
    network_class: ClassVar[type | str] = "UNetSpatioTemporalConditionModel"
    extra_channels: ClassVar[int] = 4

    def configure(self) -> None:
        super().configure()
        model = self.cfg.pretrained_model_name_or_path
        self.image_encoder = self.load(CLIPVisionModelWithProjection, model, "image_encoder")
        folder = models.model_folder(model, "feature_extractor") / "feature_extractor"
        self.settings = read_clip_settings(folder / "preprocessor_config.json")

    def load_codec(self, model: str) -> ImageCodec:
        vae = self.load("AutoencoderKLTemporalDecoder", model, "vae")
        vae = slim(vae, decodes=self.cfg.denoising_steps > 0)
        return TemporalDecoderCodec(vae, self.cfg.vae_chunk)

    def load_noise(self, model: str) -> Noise:
        stated = models.load_component(EulerDiscreteScheduler, model, "scheduler").config
        kind, time = stated.get("prediction_type"), stated.get("timestep_type")
        low, high = stated.get("sigma_min"), stated.get("sigma_max")
        if kind != "v_prediction" or time != "continuous" or low is None or high is None:
            raise ValueError(
                f"The scheduler of {model} doesn't say that it was trained in EDM's way (it has "
                f"prediction_type {kind}, timestep_type {time}, sigma_min {low}, sigma_max {high}; "
                "v_prediction, continuous and two numbers are needed). Stable Video Diffusion will "
                "do."
            )
        return EDM(float(low), float(high))

    def usual_size(self) -> tuple[int, int]:
        return 1024, 576

    def check_length(self, n_frames: int) -> None:
        """A ValueError for clips that the model wasn't made for."""
        made_for = self.network.config.num_frames
        if n_frames != made_for:
            raise ValueError(
                f"Clips have {n_frames} frames, but {self.cfg.pretrained_model_name_or_path} was "
                f"made for {made_for}: take data.single_view.num_frames={made_for}."
            )

    def guidance_scale(self, z_t: Float[Tensor, "B 4 F h w"]) -> float | Tensor:
        first, last = self.cfg.first_guidance_scale, self.cfg.guidance_scale
        if first == last:
            return last
        return torch.linspace(first, last, z_t.shape[2], device=z_t.device)[:, None, None]

    @torch.no_grad()
    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        n_clips, n_frames = clips.shape[:2]
        self.check_length(n_frames)
        cfg, first = self.cfg, self.shown_frames(clips, camera)
        pixels = clip_view(first, self.settings).to(self.dtype)
        token = self.image_encoder(pixels).image_embeds[:, None]  # [B 1 D]
        noisy = first + cfg.noise_aug_strength / 2 * torch.randn_like(first)  # of [0, 1]
        latents = self.codec.encode(noisy, mode=True, scaled=False)
        ids = torch.tensor([cfg.fps - 1, cfg.motion_bucket_id, cfg.noise_aug_strength])
        return {
            "tokens": or_nothing(token),
            "channels": or_nothing(latents[:, :, None].expand(-1, -1, n_frames, -1, -1)),
            "ids": ids.to(latents).expand(2 * n_clips, -1),
        }

    def predict_noise(
        self, z_t: Float[Tensor, "B2 8 F h w"], t: Shaped[Tensor, " B2"], condition: Condition
    ) -> Float[Tensor, "B2 4 F h w"]:
        answer = self.network(
            z_t.to(self.dtype).transpose(1, 2),
            t,
            encoder_hidden_states=condition["tokens"].to(self.dtype),
            added_time_ids=condition["ids"],
            return_dict=False,
        )[0]
        return answer.transpose(1, 2)
