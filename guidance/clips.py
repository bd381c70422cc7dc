"""What priors of clips share: a clip is one sample, and its prompt, if there is one, is that of its
first frame's camera. Image VAEs encode it frame by frame, causal video VAEs whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import threestudio
import torch
from diffusers import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor

from ..bounds import bounded
from .codecs import CausalVideoCodec, ImageCodec, WanCodec, check_frames, check_multiples
from .conditions import Condition
from .distillation import PromptedDistillation, ScoreDistillation
from .frozen_wan_vae import slim
from .latents import clip_length, resize


def usual_size(model: str, sample_size: Any, factor: int) -> tuple[int, int]:
    """Width and height in pixels that a video UNet is made for: ModelScope's is square, ZeroScope
    is told by its id or folder's name, others say so in their UNet's config, in latents."""
    if "zeroscope" in model.lower():
        return 576, 320
    if isinstance(sample_size, Sequence):
        height, width = sample_size
        return width * factor, height * factor
    return 256, 256


class Clips(ScoreDistillation):
    """[B*F H W 3], frames of a clip adjacent -> latents [B C f h w]."""

    @dataclass
    class Config(ScoreDistillation.Config):
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        # pixels, of the VAE's input; null: what the model is made for
        width: int | None = bounded(None, 1, 2**14)
        height: int | None = bounded(None, 1, 2**14)

    cfg: Config
    clips_only: ClassVar[bool] = True

    def configure(self) -> None:
        super().configure()
        model, (width, height) = self.cfg.pretrained_model_name_or_path, self.usual_size()
        self.width = width if self.cfg.width is None else self.cfg.width
        self.height = height if self.cfg.height is None else self.cfg.height
        self.check_size(width=self.width, height=self.height)
        if None in (self.cfg.width, self.cfg.height):
            threestudio.info(f"{model} is shown clips of {self.width} x {self.height} pixels.")

    def usual_size(self) -> tuple[int, int]:
        """Width and height in pixels that the model is made for."""
        return 256, 256

    def check_size(self, **sizes: int) -> None:
        """A ValueError for a size in pixels, by its name, that the model can't take."""
        self.codec.check_size(**sizes)

    @classmethod
    def check_frames(cls, n_frames: int) -> None:
        """A ValueError for clips of so many frames, where the model can't take them."""

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B F 3 Hv Wv"], Condition]:
        length = clip_length(len(images), camera.get("num_frames"))
        clips = resize(images, self.height, self.width).unflatten(0, (-1, length))
        return clips, self.clip_condition(clips, camera)

    def clip_condition(
        self, clips: Float[Tensor, "B F 3 H W"], camera: dict[str, Any]
    ) -> Condition:
        """What the network is shown of the clips themselves; camera: of their frames."""
        return {}


class ClipDistillation(Clips, PromptedDistillation):
    """... beside a prompt."""

    @dataclass
    class Config(Clips.Config, PromptedDistillation.Config):
        pass

    cfg: Config

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B F 3 Hv Wv"], Condition]:
        clips, shown = super().prepare(images, prompt_utils, camera)
        text = self.text_condition(prompt_utils, camera, slice(None, None, clips.shape[1]))
        return clips, text | shown


class FramewiseClips(Clips):
    """Clips whose latents are an image VAE's, frame by frame: [B 4 F h w]."""

    @dataclass
    class Config(Clips.Config):
        # frames of a clip that keep the VAE graph; -1 keeps all
        low_ram_vae: int = bounded(-1, 1, 2**16, names=(-1,))

    cfg: Config
    codec: ImageCodec

    def usual_size(self) -> tuple[int, int]:
        model, sample = self.cfg.pretrained_model_name_or_path, self.network.config.sample_size
        return usual_size(model, sample, self.codec.pixel_factor)

    def to_latents(self, pictures: Float[Tensor, "B F 3 H W"]) -> Float[Tensor, "B 4 F h w"]:
        return self.codec.encode_clips(pictures, self.cfg.low_ram_vae)


class FramewiseDistillation(FramewiseClips, ClipDistillation):
    """A UNet over such clips, beside a prompt."""

    @dataclass
    class Config(FramewiseClips.Config, ClipDistillation.Config):
        pass

    cfg: Config
    network_class: ClassVar[type | str] = UNet3DConditionModel


class CausalDistillation(ClipDistillation):
    """A transformer over clips whose latents are a causal video VAE's: [B C f h w] of k m + 1
    frames for k + 1 latent ones. In bfloat16, as these are trained: at float16 they may overflow.
    """

    @dataclass
    class Config(ClipDistillation.Config):
        # frames behind the first that keep the VAE's graph at once, the rest is redone (in other
        # VAEs than Wan's: block by block, whatever the number); 0: all
        vae_chunk: int = bounded(0, 0)

    cfg: Config
    codec: CausalVideoCodec
    vae_class: ClassVar[str] = "AutoencoderKLWan"  # of diffusers
    frame_factor: ClassVar[int] = 4  # m
    network_folder: ClassVar[str] = "transformer"
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @property
    def patch(self) -> int:
        """Latent pixels on a side of a token."""
        size = self.network.config.patch_size
        return size[-1] if isinstance(size, Sequence) else size

    def load_codec(self, model: str) -> CausalVideoCodec:
        vae, chunk = self.load(self.vae_class, model, "vae"), self.cfg.vae_chunk
        if self.vae_class == "AutoencoderKLWan":
            return WanCodec(slim(vae, decodes=self.cfg.denoising_steps > 0), chunk)
        if chunk:
            vae.enable_gradient_checkpointing()
        return CausalVideoCodec(vae)

    def check_size(self, **sizes: int) -> None:
        check_multiples(self.codec.pixel_factor * self.patch, sizes)

    @classmethod
    def check_frames(cls, n_frames: int) -> None:
        check_frames(n_frames, cls.frame_factor)
