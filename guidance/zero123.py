"""3D priors: Zero123 and Stable Zero123, which see the reference image from another camera.
Guidance is uncond + scale (cond - uncond) with scale 5 (the latter: 3), t in 0.2..0.6 of the
timesteps, w(t) = 1 - sqrt(alpha_bar).

Their condition is the reference image twice: its CLIP embedding with four numbers of the camera,
through one linear layer, as the only cross-attention token; and its VAE latents (the mode, NOT
scaled: so they were trained), concatenated to the noisy ones. Both are zeros in the unconditional
half.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
from jaxtyping import Float
from threestudio.utils.misc import cleanup
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from ..bounds import bounded, path_of
from ..data.reference_image import reference_on_white
from ..pretrained.models import model_folder
from . import sds
from .codecs import ImageCodec
from .conditions import Condition, or_nothing
from .distillation import ScoreDistillation
from .latents import resize
from .zero123_model import CLIPCameraProjection, camera_offset, clip_pixels, read_clip_settings


@threestudio.register("animate124-zero123-guidance")
class Zero123Guidance(ScoreDistillation):
    """Each image is one sample: [N H W 3] -> latents [N 4 size/8 size/8]. It needs no prompt."""

    @dataclass
    class Config(ScoreDistillation.Config):
        pretrained_model_name_or_path: str = path_of("model", "bennyguo/zero123-xl-diffusers")
        guidance_scale: float = 5.0  # of classifier-free guidance
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.2, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.6, 0, 1, schedule=True)
        weighting_strategy: str = bounded(
            "dreamfusion", names=tuple(sds.WEIGHTS)
        )  # w(t) = 1 - sqrt(alpha_bar)
        # pixels on a side, of the VAE's input and of the reference image
        size: int = bounded(256, 1, 2**14)
        cond_image_path: str = path_of("file")  # the reference image, RGBA
        cond_elevation_deg: float = bounded(0.0, -90, 90)  # degrees, of the camera that took it
        cond_azimuth_deg: float = bounded(0.0, -720, 720)  # degrees
        cond_camera_distance: float = bounded(2.5, 1e-3, 1e3)  # scene units

    cfg: Config
    codec: ImageCodec
    extra_channels: ClassVar[int] = 4

    def configure(self) -> None:
        super().configure()
        self.codec.check_size(size=self.cfg.size)
        model = self.cfg.pretrained_model_name_or_path
        self.projection = self.load(CLIPCameraProjection, model, "clip_camera_projection")
        encoder = self.load(CLIPVisionModelWithProjection, model, "image_encoder")
        folder = model_folder(model, "feature_extractor") / "feature_extractor"
        settings = read_clip_settings(folder / "preprocessor_config.json")
        image = reference_on_white(self.cfg.cond_image_path, self.cfg.size).to(self.device)
        with torch.no_grad():
            pixels = clip_pixels(image, settings).to(self.dtype)
            self.image_embedding = encoder(pixels).image_embeds  # [1 D]
            self.image_latents = self.codec.encode(image, mode=True, scaled=False)
        del encoder
        cleanup()

    def camera_numbers(
        self,
        elevation: Float[Tensor, " N"],
        azimuth: Float[Tensor, " N"],
        camera_distances: Float[Tensor, " N"],
        reference: tuple[float, float, float],
    ) -> Float[Tensor, "N 4"]:
        """What the token says of cameras (degrees) beside the image."""
        return camera_offset(elevation, azimuth, camera_distances, reference)

    @torch.no_grad()
    def image_condition(
        self,
        elevation: Float[Tensor, " N"],
        azimuth: Float[Tensor, " N"],
        camera_distances: Float[Tensor, " N"],
    ) -> Condition:
        """Token [2N 1 D] and concatenated latents [2N 4 h w] of cameras (degrees), then zeros."""
        cfg, n = self.cfg, len(elevation)
        reference = (cfg.cond_elevation_deg, cfg.cond_azimuth_deg, cfg.cond_camera_distance)
        offset = self.camera_numbers(elevation, azimuth, camera_distances, reference)
        embedding = self.image_embedding.expand(n, -1)
        token = self.projection.proj(torch.cat([embedding, offset.to(embedding)], dim=-1))[:, None]
        latents = self.image_latents.expand(n, -1, -1, -1)
        return {"tokens": or_nothing(token), "channels": or_nothing(latents)}

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "N 3 S S"], Condition]:
        images = resize(images, self.cfg.size, self.cfg.size)
        angles = (camera[key] for key in ("elevation", "azimuth", "camera_distances"))
        return images, self.image_condition(*angles)


@threestudio.register("animate124-stable-zero123-guidance")
class StableZero123Guidance(Zero123Guidance):
    """Stability AI's, which is told how far from straight above the reference was taken, in place
    of the distance."""

    @dataclass
    class Config(Zero123Guidance.Config):
        pretrained_model_name_or_path: str = path_of("model", "ashawkey/stable-zero123-diffusers")
        guidance_scale: float = 3.0  # of classifier-free guidance

    cfg: Config

    def camera_numbers(
        self,
        elevation: Float[Tensor, " N"],
        azimuth: Float[Tensor, " N"],
        camera_distances: Float[Tensor, " N"],
        reference: tuple[float, float, float],
    ) -> Float[Tensor, "N 4"]:
        offset = camera_offset(elevation, azimuth, camera_distances, reference)
        from_above = torch.full_like(offset[:, 3:], math.radians(90 - reference[0]))
        return torch.cat([offset[:, :3], from_above], dim=1)
