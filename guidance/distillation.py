"""One step of score distillation, shared by all priors. A prior is a leaf that says how rendered
frames become the pictures that it looks at and a condition (`prepare`), and what its network
predicts (`predict_noise`).

`denoising_steps` says what frames are pulled to. With 0 it is score distillation: the noise that
the network sees, in place of what was drawn, is a gradient of the latents. With n it is "render,
noise, denoise, fit": n deterministic steps lead from the noisy latents to clean ones, and their
pictures are the target of a mean squared error (SDEdit, Meng et al. 2022, as a target: ReconFusion,
Wu et al. 2024). The rest, times, schedules and guidance, is the same.

Everything is evaluated with the conditional half of a batch first, then the unconditional one, as
threestudio's prompt processors return their embeddings. Angles are in degrees.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import threestudio
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Shaped
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import C
from torch import Tensor, nn

from ..bounds import Bounded, bounded, in_order, path_of
from ..plain import plain
from ..pretrained import models
from ..pretrained.lora import add_lora
from ..pretrained.models import weights_dtype
from . import sds
from .at_once import KnownGradient, differentiated
from .codecs import Codec, ImageCodec
from .conditions import Condition, both, noised_part, shown, with_clean_part
from .denoising import denoise
from .frozen_vae import slim
from .latents import channels_first
from .noise import DDPM, Noise, add_noise, alpha_bar_of, check_fractions
from .speed import Recorded, are_few, check_compile, prepare_network
from .targets import KeptTargets
from .waiting_weights import wait_in_host


class ScoreDistillation(BaseObject):
    """grad = w(t) (eps_hat - eps), sent into the rendered frames through the VAE; or a few steps of
    denoising, whose pictures the frames are to fit."""

    @dataclass
    class Config(BaseObject.Config, Bounded):
        pretrained_model_name_or_path: str = path_of(
            "model"
        )  # a folder in diffusers' format, or a hub id
        guidance_scale: float = 100.0  # of classifier-free guidance
        # first and last timestep, fractions of all; numbers or C lists
        min_step_percent: Any = bounded(0.02, 0, 1, schedule=True)
        max_step_percent: Any = bounded(0.98, 0, 1, schedule=True)
        denoising_steps: int = bounded(0, 0, 1000)  # to a target picture; 0: score distillation
        # steps that a target serves, where its view comes again (data.single_view's n_cameras,
        # n_clips)
        target_uses: int = bounded(1, 1, 2**31)
        weighting_strategy: str = bounded("sds", names=tuple(sds.WEIGHTS))  # w(t), of SDS alone
        # of SDS alone: latents' gradient is clamped to +-this; a number or a C list
        grad_clip: Any = bounded(None, 0, schedule=True, names=(None,))
        # float16 on a GPU, bfloat16 on a CPU that multiplies it, else float32
        half_precision_weights: bool = True
        # the network's weights in one file (.safetensors), as diffusers' from_single_file reads
        # them, in place of the folder's; the rest of the model stays the folder's
        network_file: str | None = path_of("file", None)
        # what somebody trained on top of the network (LoRA, .safetensors), so many times
        lora: str | None = path_of("file", None)
        lora_scale: float = 1.0
        # images that keep the VAE's graph at once, the rest is redone; 0: all
        vae_chunk: int = bounded(0, 0)
        # the network's weights wait in the host's memory, and come to the GPU for each call
        weights_wait: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            in_order(self, "min_step_percent", "max_step_percent")
            if self.denoising_steps and self.grad_clip is not None:
                raise ValueError(
                    f"grad_clip is {self.grad_clip} and denoising_steps {self.denoising_steps}, "
                    "but what is clipped is the gradient of score distillation: grad_clip=null or "
                    "denoising_steps=0 will do."
                )

    cfg: Config
    network_class: ClassVar[type | str] = UNet2DConditionModel  # a name: of diffusers
    network_folder: ClassVar[str] = "unet"  # of the model
    extra_channels: ClassVar[int] = 0  # that the network takes in beside the latents'
    half_dtype: ClassVar[torch.dtype] = torch.float16  # of half-precision weights
    cfg_start: ClassVar[str] = "uncond"  # where classifier-free guidance starts from
    clips_only: ClassVar[bool] = False  # whether single pictures make no sense to it
    # whether the halves of classifier-free guidance see the same but for tokens that UNets read
    only_text_differs: ClassVar[bool] = False

    def configure(self) -> None:
        # as OmegaConf has them: the real threestudio's C takes no plain lists
        self.range = self.cfg.min_step_percent, self.cfg.max_step_percent
        self.clip = self.cfg.grad_clip
        self.cfg = plain(self.cfg)
        model = self.cfg.pretrained_model_name_or_path
        threestudio.info(f"Loading {type(self).__name__}'s model {model} ...")
        self.dtype = weights_dtype(self.cfg.half_precision_weights, self.device, self.half_dtype)
        self.network = self.load_network()
        if self.cfg.lora is not None:
            add_lora(self.network, self.cfg.lora, self.cfg.lora_scale)
        self.codec = self.load_codec(model)
        channels = self.network.config.in_channels
        needed = self.codec.channels + self.extra_channels
        if channels != needed:
            raise ValueError(
                f"The {type(self.network).__name__} of {self.network_place[0]} takes {channels} "
                f"channels, but {type(self).__name__} needs one with {needed}: "
                "is the model of another kind (inpainting, Zero123, image to video)?"
            )
        self.noise = self.load_noise(model)
        self.kept_targets = KeptTargets(self.cfg.target_uses)
        self.recorded: Recorded[Tensor] | None = None
        self.recorded_score: Recorded[tuple[Tensor, ...]] | None = None
        self.update_step(0, 0)

    @property
    def network_place(self) -> tuple[str, str]:
        """The model that has the network, and the folder in it."""
        return self.cfg.pretrained_model_name_or_path, self.network_folder

    def load_network(self) -> Any:
        """What `predict_noise` asks, frozen."""
        if self.cfg.network_file is None:
            return self.load(self.network_class, *self.network_place)
        kind, file = models.class_of(self.network_class), self.cfg.network_file
        return models.load_single_file(kind, file, *self.network_place, self.dtype).to(self.device)

    def load_codec(self, model: str) -> Codec:
        """How the model's latents are made, by default with Stable Diffusion's VAE."""
        vae = slim(self.load(AutoencoderKL, model, "vae"), decodes=self.cfg.denoising_steps > 0)
        return ImageCodec(vae, self.cfg.vae_chunk)

    def load_noise(self, model: str) -> Noise:
        """How the model was trained, by default as its scheduler says in DDPM's terms."""
        scheduler = models.load_component(DDPMScheduler, model, "scheduler")
        alphas_cumprod = scheduler.alphas_cumprod.to(self.device)
        try:
            return DDPM(alphas_cumprod, scheduler.config.prediction_type)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from None

    def load(self, kind: type | str, model: str, subfolder: str = "") -> Any:
        """A frozen component on this prior's device, in its precision; kind: a class, or the name
        of one that diffusers has had since some version."""
        kind = models.class_of(kind)
        return models.load_component(kind, model, subfolder, self.dtype).to(self.device)

    @property
    def networks(self) -> list[nn.Module]:
        """What `predict_noise` runs: frozen, and not differentiated."""
        return [self.network]

    @property
    def vae(self) -> nn.Module:
        return self.codec.vae

    @property
    def shares_halves(self) -> bool:
        """Whether all batches of `networks` have two halves that differ in their text alone."""
        conditional = sds.is_conditional(self.cfg.guidance_scale, self.cfg_start)
        return self.only_text_differs and not conditional

    def speed_up(self, how: bool | str, pool: Any = None) -> None:
        """`system.speed.compile`, see speed.py; a CPU has no CUDA graphs to record.

        pool: CUDA memory to share with other priors that live as long as this one.
        """
        if check_compile(how) and self.device.type == "cuda" and self.recorded is None:
            for network in self.networks:
                prepare_network(network, how, self.shares_halves)
            pool = pool or torch.cuda.graph_pool_handle()
            name = type(self).__name__
            self.recorded = Recorded(self.predict_from, name, pool)
            if isinstance(self.codec, ImageCodec):
                self.codec.record(f"{name}'s VAE")
                if self.codec.chunk == 0:  # checkpoints can't be recorded
                    self.recorded_score = Recorded(self.score_of, f"{name}'s step", pool)
        if self.cfg.weights_wait and self.device.type == "cuda":
            self.let_weights_wait(how)

    def let_weights_wait(self, how: bool | str) -> None:
        """`weights_wait`, once the networks are as they stay."""
        if how == "inductor":
            raise ValueError(
                "weights_wait is true, but with system.speed.compile=inductor weights have to stay "
                "where they are: compile=graph, or weights_wait=false, will do."
            )
        for network in self.networks:
            wait_in_host(network, self.device)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Sets the timestep range and the clipping of this training step."""
        self.low, self.high = (C(bound, epoch, global_step) for bound in self.range)
        check_fractions(self.low, self.high)
        self.grad_clip_val = None if self.clip is None else C(self.clip, epoch, global_step)

    def prepare(
        self, images: Float[Tensor, "N 3 H W"], prompt_utils: Any, camera: dict[str, Any]
    ) -> tuple[Float[Tensor, "B *F 3 Hv Wv"], Condition]:
        """The pictures or clips that a leaf's VAE is shown, with their graph, and what its network
        is conditioned on."""
        raise NotImplementedError

    def to_latents(self, pictures: Float[Tensor, "B *F 3 H W"]) -> Float[Tensor, "B c *size"]:
        """Their latents."""
        if pictures.ndim == 5:
            return self.codec.encode_clips(pictures)
        return cast(ImageCodec, self.codec).encode(pictures)

    def to_pictures(self, z: Float[Tensor, "B c *size"]) -> Float[Tensor, "B *F 3 H W"]:
        """The way back, without a graph."""
        return self.codec.decode_clips(z) if z.ndim == 5 else cast(ImageCodec, self.codec).decode(z)

    def predict_noise(
        self, z_t: Float[Tensor, "B2 c *size"], t: Shaped[Tensor, " B2 *F"], condition: Condition
    ) -> Float[Tensor, "B2 C *size"]:
        """The network's raw prediction for both halves, by default a UNet's that reads tokens; z_t
        and t are as conditions.shown has them."""
        tokens = condition["tokens"].to(self.dtype)
        return self.network(z_t.to(self.dtype), t, encoder_hidden_states=tokens).sample

    def predict_from(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B2 C *size"]:
        """`predict_noise` of a dict with z_t, t and the condition."""
        condition = {k: v for k, v in inputs.items() if k not in ("z_t", "t")}
        return self.predict_noise(*shown(inputs["z_t"], inputs["t"], condition), condition)

    def guidance_scale(self, z_t: Float[Tensor, " B *shape"]) -> float | Tensor:
        """Of classifier-free guidance: one for all, or a tensor that is spread over z_t."""
        return self.cfg.guidance_scale

    def guided_noise(
        self, z_t: Float[Tensor, " B *shape"], t: Shaped[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, " B *shape"]:
        """eps_hat: the prediction as noise, with classifier-free guidance."""
        scale, start = self.guidance_scale(z_t), self.cfg_start
        if sds.is_conditional(scale, start):  # half the work
            return self.noise_in(z_t, t, {k: v[: len(v) // 2] for k, v in condition.items()})
        cond, uncond = self.noise_in(both(z_t), both(t), condition).chunk(2)
        return sds.classifier_free_guidance(cond, uncond, scale, start)

    def noise_in(
        self, z_t: Float[Tensor, " N *shape"], t: Shaped[Tensor, " N"], condition: Condition
    ) -> Float[Tensor, " N *shape"]:
        """The network's prediction as noise, of as many rows as the condition has."""
        network = self.recorded or self.predict_from
        seen = {"z_t": self.noise.model_input(z_t, t), "t": self.noise.model_time(t)}
        return self.noise.noise_of(network({**seen, **condition}).float(), z_t, t)

    def __call__(
        self, rgb: Float[Tensor, "N H W C"], prompt_utils: Any = None, **camera: Any
    ) -> dict[str, Any]:
        """The loss of rendered frames, and what to log.

        camera: the batch that the frames were rendered with; priors read `elevation`, `azimuth`
            (degrees) and `camera_distances`, each [N], and for clips `num_frames`.
        """
        with torch.autocast(rgb.device.type, enabled=False):
            pictures, condition = self.prepare(channels_first(rgb), prompt_utils, camera)
            if self.cfg.denoising_steps:
                said = self.fit(pictures, condition, camera)
            else:
                said = self.distill(pictures, condition)
        return said | {
            "min_step": self.noise.time_at(self.low),
            "max_step": self.noise.time_at(self.high),
        }

    def distill(
        self, pictures: Float[Tensor, "B *F 3 H W"], condition: Condition
    ) -> dict[str, Tensor]:
        """Score distillation's loss, which has taken its gradient already (at_once.py)."""
        clip = {}
        if self.grad_clip_val is not None:
            clip["grad_clip"] = torch.full((), self.grad_clip_val, device=pictures.device)
        if self.recorded_score is not None and are_few(pictures):
            noise = cast(ImageCodec, self.codec).noise(pictures)
            t = self.noise.draw(len(noise), self.low, self.high, device=noise.device)
            drawn = {"noise": noise, "t": t, "eps": torch.randn(noise.shape, device=noise.device)}
            inputs = {"pictures": pictures.detach(), **drawn, **clip, **condition}
            value, norm, lost, slopes = self.recorded_score(inputs)
            loss = KnownGradient.apply(pictures, value, slopes)
        else:
            seen = pictures.detach().requires_grad_(pictures.requires_grad)
            z = self.to_latents(seen)
            t = self.noise.draw(len(z), self.low, self.high, device=z.device)
            loss, norm, lost = self.score(z, t, torch.randn_like(z), condition, **clip)
            loss = differentiated(loss, seen, pictures)
        # lost: share of the gradient that wasn't finite
        return {"loss_sds": loss, "grad_norm": norm, "lost": lost}

    def score_of(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """`score` of a dict with single pictures, the codec's noise, t, eps, the condition, and
        grad_clip where there is one; and the loss's gradient for the pictures."""
        condition = dict(inputs)
        pictures, noise, t, eps = (condition.pop(k) for k in ("pictures", "noise", "t", "eps"))
        grad_clip = condition.pop("grad_clip", None)
        with torch.enable_grad():
            seen = pictures.detach().requires_grad_()
            z = cast(ImageCodec, self.codec).encode(seen, noise=noise)
            loss, norm, lost = self.score(z, t, eps, condition, grad_clip)
            (slopes,) = torch.autograd.grad(loss, seen)
        return loss.detach(), norm, lost, slopes

    def score(
        self,
        z: Float[Tensor, "B c *size"],
        t: Shaped[Tensor, " B"],
        eps: Float[Tensor, "B c *size"],
        condition: Condition,
        grad_clip: Float[Tensor, ""] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Score distillation's loss of latents, the norm of their gradient, and how much of it
        wasn't finite."""
        with torch.no_grad():
            alpha, sigma = self.noise.scales(t)
            eps_hat = self.guided_noise(add_noise(z, eps, alpha, sigma), t, condition)
            weight = sds.WEIGHTS[self.cfg.weighting_strategy](alpha_bar_of(alpha, sigma))
            grad = noised_part(sds.sds_gradient(eps_hat, eps, weight), condition)
            grad, lost = sds.finite_part(grad)
            if grad_clip is not None:
                grad = grad.clamp(-grad_clip, grad_clip)
        return sds.sds_loss(z, grad), grad.norm(), lost

    def fit(
        self,
        pictures: Float[Tensor, "B *F 3 H W"],
        condition: Condition,
        camera: dict[str, Any],
    ) -> dict[str, Tensor]:
        """The mean squared error to what denoising makes of the pictures."""
        with torch.no_grad():
            made = self.kept_targets.of(
                camera, pictures.shape, lambda: self.target(pictures, condition)
            )
            pull, lost = sds.finite_part(pictures - made)
        return {"loss_fit": F.mse_loss(pictures, pictures.detach() - pull), "lost": lost}

    @torch.no_grad()
    def target(
        self, pictures: Float[Tensor, "B *F 3 H W"], condition: Condition
    ) -> Float[Tensor, "B *F 3 H W"]:
        """The pictures with noise, denoised."""
        z = self.to_latents(pictures)
        t = self.noise.draw(len(z), self.low, self.high, device=z.device)
        z_t = add_noise(z, torch.randn_like(z), *self.noise.scales(t))

        def guided(z_t: Tensor, t: Tensor) -> Tensor:
            return self.guided_noise(z_t, t, condition)

        z = denoise(self.noise, guided, z_t, t, self.cfg.denoising_steps)
        return self.to_pictures(with_clean_part(z, condition))


class PromptedDistillation(ScoreDistillation):
    """A prior that reads a prompt."""

    @dataclass
    class Config(ScoreDistillation.Config):
        view_dependent_prompting: bool = True  # ", front view" and so on, by the camera

    cfg: Config

    def text_condition(
        self, prompt_utils: Any, camera: dict[str, Any], rows: slice | Tensor = slice(None)
    ) -> Condition:
        """The prompt for the cameras of these rows of the batch: tokens, and their mask if the
        prompt processor has one (threestudio's have none)."""
        if prompt_utils is None:
            raise ValueError(
                f"{type(self).__name__} needs a prompt: give system.prompt_processor_type (or "
                "..._cn_type for the tile prior) and pass what the processor returns."
            )
        angles = [camera[key][rows] for key in ("elevation", "azimuth", "camera_distances")]
        by_view = self.cfg.view_dependent_prompting
        tokens = prompt_utils.get_text_embeddings(*angles, view_dependent_prompting=by_view)
        get_masks = getattr(prompt_utils, "get_text_masks", None)
        mask = get_masks and get_masks(*angles, view_dependent_prompting=by_view)
        return {"tokens": tokens} if mask is None else {"tokens": tokens, "mask": mask}
