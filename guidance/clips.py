"""What priors of clips share: a clip is one sample, encoded frame by frame, and its prompt is that
of its first frame's camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
from diffusers import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded
from .codecs import ImageCodec
from .conditions import Condition
from .distillation import PromptedDistillation
from .latents import clip_length, resize


def usual_size(model: str, sample_size: Any, factor: int) -> tuple[int, int]:
    """Width and height in pixels that a video model is made for: ModelScope's is square, ZeroScope
    is told by its id or folder's name, others say so in their UNet's config, in latents."""
    if "zeroscope" in model.lower():
        return 576, 320
    if isinstance(sample_size, Sequence):
        height, width = sample_size
        return width * factor, height * factor
    return 256, 256


class ClipDistillation(PromptedDistillation):
    """[B*F H W 3], frames of a clip adjacent -> latents [B 4 F h w]."""

    @dataclass
    class Config(PromptedDistillation.Config):
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        # pixels, of the VAE's input; null: what the model is made for
        width: int | None = bounded(None, 1, 2**14)
        height: int | None = bounded(None, 1, 2**14)
        # frames of a clip that keep the VAE graph; -1 keeps all
        low_ram_vae: int = bounded(-1, 1, 2**16, names=(-1,))

    cfg: Config
    codec: ImageCodec
    network_class: ClassVar[type] = UNet3DConditionModel
    clips_only: ClassVar[bool] = True

    def configure(self) -> None:
        super().configure()
        model, sample = self.cfg.pretrained_model_name_or_path, self.network.config.sample_size
        width, height = usual_size(model, sample, self.codec.pixel_factor)
        self.width = width if self.cfg.width is None else self.cfg.width
        self.height = height if self.cfg.height is None else self.cfg.height
        self.codec.check_size(width=self.width, height=self.height)
        if None in (self.cfg.width, self.cfg.height):
            threestudio.info(f"{model} is shown clips of {self.width} x {self.height} pixels.")

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B F 3 Hv Wv"], Condition]:
        length = clip_length(len(images), camera.get("num_frames"))
        clips = resize(images, self.height, self.width).unflatten(0, (-1, length))
        text = self.text_condition(prompt_utils, camera, slice(None, None, length))
        return clips, text | self.clip_condition(clips)

    def to_latents(self, pictures: Float[Tensor, "B F 3 H W"]) -> Float[Tensor, "B 4 F h w"]:
        return self.codec.encode_clips(pictures, self.cfg.low_ram_vae)

    def clip_condition(self, clips: Float[Tensor, "B F 3 H W"]) -> Condition:
        """What the network is shown of the clips themselves."""
        return {}
