"""Trains the toy priors: small diffusion models of the toy world, in diffusers' folder format.

    python -m animate124.toyworld.train --out load/toy-priors             # minutes on a GPU
    python -m animate124.toyworld.train --out OUT --tiny          # a minute on a CPU, for tests

One after another: the VAE that all share, the text encoder with the text-to-image UNet, the tile
ControlNet on it, Zero123, the text-to-video UNet. Each part saves its state (weights, averages,
optimizer) every few hundred steps and goes on from there when the same command runs again; a part
that is done is skipped. All draws follow from --seed. log.csv has the losses, quality.json what was
measured on characters that training never saw.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

from ..files.whole import whole_file
from . import banks, folders
from .captions import WORDS

SIZE = 64  # pixels
PARTS = ("vae", "sd", "controlnet", "zero123", "video")
DROP = 0.1  # share of the training examples without their condition, for classifier-free guidance


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the banks and models, and how long each part trains."""

    characters: int = 4000  # of each bank
    pictures: int = 12  # of each character
    frames: int = 8  # of a clip
    steps: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(vae=2500, sd=5000, controlnet=2000, zero123=6000, video=7000)
    )
    batch: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(vae=128, sd=256, controlnet=128, zero123=256, video=32)
    )
    width: int = 128  # of the text and image embeddings
    channels: tuple[int, ...] = (64, 128, 192)  # Zero123's UNet
    sd_channels: tuple[int, ...] = (64, 64, 96)
    video_channels: tuple[int, ...] = (64, 64, 96)
    vae_channels: tuple[int, ...] = (32, 64, 64)
    learning_rate: float = 1e-3
    sampling_steps: int = 30  # DDIM, for quality.json and the sheets


TINY = Plan(
    characters=6,
    pictures=2,
    frames=2,
    steps=dict.fromkeys(PARTS, 3),
    batch=dict.fromkeys(PARTS, 2),
    width=32,
    channels=(32, 32, 32),
    sd_channels=(32, 32, 32),
    video_channels=(32, 32, 32),
    vae_channels=(8, 16, 16),
    sampling_steps=1,
)


# ---------------------------------------------------------------------------------- models


def make_vae(plan: Plan) -> AutoencoderKL:
    n = len(plan.vae_channels)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * n,
        up_block_types=["UpDecoderBlock2D"] * n,
        block_out_channels=plan.vae_channels,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
    )


def unet_config(plan: Plan, channels: tuple[int, ...], kind: str) -> dict:
    return dict(
        sample_size=SIZE // 4,
        out_channels=4,
        down_block_types=[f"CrossAttnDownBlock{kind}"] * 2 + [f"DownBlock{kind}"],
        up_block_types=[f"UpBlock{kind}"] + [f"CrossAttnUpBlock{kind}"] * 2,
        block_out_channels=channels,
        layers_per_block=1,
        attention_head_dim=32 if kind == "3D" else 4,
        norm_num_groups=32,
        cross_attention_dim=plan.width,
    )


def make_text_encoder(plan: Plan, vocabulary: list[str]) -> CLIPTextModel:
    config = CLIPTextConfig(
        **folders.text_config(vocabulary, plan.width), max_position_embeddings=folders.MAX_TOKENS
    )
    return CLIPTextModel(config)


def make_image_encoder(plan: Plan) -> CLIPVision:
    return CLIPVision(CLIPVisionConfig(**folders.vision_config(plan.width, SIZE)))


# ----------------------------------------------------------------------------------- maths


def alpha_bars(device: torch.device | str) -> Float[Tensor, " T"]:
    """Products of 1 - beta of the schedule that all folders name."""
    return DDIMScheduler.from_config(folders.SCHEDULER).alphas_cumprod.to(device)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor], z: Float[Tensor, "B C *size"], alpha_bar: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise at random timesteps (DDPM, Ho et al. 2020)."""
    t = torch.randint(0, len(alpha_bar), (len(z),), device=z.device)
    a = alpha_bar[t].reshape(-1, *[1] * (z.ndim - 1))
    eps = torch.randn_like(z)
    return F.mse_loss(predict(a.sqrt() * z + (1 - a).sqrt() * eps, t), eps)


def camera_offset(
    elevation_deg: Float[Tensor, " B"], azimuth_deg: Float[Tensor, " B"]
) -> Float[Tensor, "B 4"]:
    """Zero123's numbers for a camera, as seen from the reference at angles 0 and equal distance."""
    e, a = torch.deg2rad(elevation_deg), torch.deg2rad(azimuth_deg)
    return torch.stack([-e, a.sin(), a.cos(), torch.zeros_like(e)], dim=-1)


@torch.no_grad()
def sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    uncond: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    scale: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """DDIM (Song et al. 2021) with classifier-free guidance uncond + scale (cond - uncond)."""
    scheduler = DDIMScheduler.from_config(folders.SCHEDULER)
    scheduler.set_timesteps(steps)
    device = generator.device
    z = torch.randn(shape, generator=generator, device=device)
    for t in scheduler.timesteps.tolist():
        at = torch.full((shape[0],), t, device=device)
        free = uncond(z, at)
        z = scheduler.step(free + scale * (predict(z, at) - free), t, z).prev_sample
    return z


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures in [0, 1], in dB."""
    return float((-10 * (a - b).square().flatten(1).mean(1).log10()).mean())


# ------------------------------------------------------------------------------------ loop


class Trainer:
    """Trains one part: AdamW with cosine decay, averaged weights, state on disk.

    On a GPU a whole step is one CUDA graph: these models are so small that launching their kernels
    one by one takes longer than running them.
    """

    def __init__(self, name: str, plan: Plan, modules: dict[str, nn.Module], work: Path) -> None:
        self.name, self.steps, self.work = name, plan.steps[name], work
        self.modules = nn.ModuleDict(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.device = self.parameters[0].device
        self.peak = plan.learning_rate
        cuda = self.device.type == "cuda"
        self.rate = torch.tensor(self.peak, device=self.device) if cuda else self.peak
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=1e-2, fused=True, capturable=cuda
        )
        self.step = 0

    @property
    def state_file(self) -> Path:
        return self.work / f"{self.name}.pt"

    def resume(self) -> None:
        """Goes on from the last state, if there is one."""
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for average, value in zip(self.average, state["average"], strict=True):
            average.copy_(value)
        self.step = state["step"]
        if self.step < self.steps:
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:  # the tensor that set_rate fills
                group["lr"] = self.rate

    def save(self) -> None:
        state = {"modules": self.modules.state_dict(), "average": self.average, "step": self.step}
        state["optimizer"] = self.optimizer.state_dict()
        with whole_file(self.state_file) as part, part.open("wb") as file:
            torch.save(state, file)

    def set_rate(self) -> None:
        warm_up = min(1.0, (self.step + 1) / (0.03 * self.steps))
        rate = self.peak * warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def one_step(self, loss_function: Callable[[], Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = loss_function()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, self.parameters, 1 / 500)
        return loss.detach()

    def graphed(self, loss_function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that does one step by replaying it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a capture wants warm libraries and allocated gradients
            for _ in range(3):
                self.one_step(loss_function)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.one_step(loss_function)

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay

    def fit(self, loss_function: Callable[[], Tensor], seed: int, log: Callable) -> None:
        """Trains to the end (or not at all, if it was done), then puts the averages in place."""
        self.resume()
        self.modules.train()
        torch.manual_seed(seed + self.step)
        if self.step < self.steps:
            self.set_rate()
            cuda = self.device.type == "cuda"
            step = self.graphed(loss_function) if cuda else lambda: self.one_step(loss_function)
            started, recent = time.time(), []
            bar = tqdm(range(self.step, self.steps), desc=self.name, mininterval=5)
            for self.step in bar:
                self.set_rate()
                loss = step()
                if self.step % 50 == 0:
                    recent.append(loss.item())
                    log(self.name, self.step, recent[-1])
                    bar.set_postfix(loss=f"{sum(recent[-10:]) / len(recent[-10:]):.4f}")
                if (self.step + 1) % 500 == 0:
                    self.step += 1
                    self.save()
            self.step = self.steps
            self.save()
            print(f"{self.name}: {self.steps} steps, {time.time() - started:.0f} s", flush=True)
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)
        self.modules.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------- priors


class Workshop:
    """Trains the parts in order; each method gives a finished, frozen part."""

    def __init__(self, out: Path, plan: Plan, seed: int, device: str) -> None:
        self.out, self.plan, self.seed, self.device = out, plan, seed, device
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.alpha_bar = alpha_bars(device)
        self.vocabulary, self.merges = folders.byte_pairs(WORDS)
        folders.write_tokenizer(self.work / "tokenizer", self.vocabulary, self.merges)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.work / "tokenizer")
        self.quality: dict[str, float] = {}

    def log(self, part: str, step: int, loss: float) -> None:
        with open(self.out / "log.csv", "a", newline="") as file:
            csv.writer(file).writerow([part, step, f"{loss:.6f}"])

    def seeded(self, part: str) -> int:
        seed = 1000 * self.seed + 100_000 * PARTS.index(part)
        torch.manual_seed(seed)
        return seed

    def rows(self, n: int, part: str) -> Tensor:
        return torch.randint(0, n, (self.plan.batch[part],), device=self.device)

    def image_bank(self, seed: int = 0) -> banks.Bank:
        plan = self.plan
        return banks.image_bank(
            plan.characters, plan.pictures, size=SIZE, seed=self.seed + seed, device=self.device
        )

    # -- autoencoder

    def vae(self, bank: banks.Bank) -> AutoencoderKL:
        seed = self.seeded("vae")
        vae = make_vae(self.plan).to(self.device)
        trainer = Trainer("vae", self.plan, {"vae": vae}, self.work)

        def loss() -> Tensor:
            x = pictures(bank.images[self.rows(len(bank.images), "vae")])
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
            kl = posterior.mean.square() + posterior.var - 1 - posterior.logvar
            return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x) + 1e-6 * kl.mean()

        trainer.fit(loss, seed, self.log)
        z = self.encode(vae, bank.images[:2048])[0]
        self.quality["scaling"] = 1 / float(z.std())
        vae.register_to_config(scaling_factor=self.quality["scaling"])
        unseen = self.held_out_views().views.flatten(0, 1)[:256]
        y = torch.cat([vae.decode(z).sample for z in self.encode(vae, unseen)[0].split(64)])
        self.quality["vae_psnr"] = psnr((y.clamp(-1, 1) + 1) / 2, unseen / 255)
        return vae

    @torch.no_grad()
    def encode(self, vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations [N 4 h w] of the posteriors of uint8 pictures."""
        means, stds = [], []
        for part in images.split(512):
            posterior = vae.encode(pictures(part)).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
        return torch.cat(means), torch.cat(stds)

    def latents(self, vae: AutoencoderKL, images: Tensor) -> Callable[..., Tensor]:
        """A function of an index that draws scaled latents of those pictures."""
        mean, std = self.encode(vae, images)
        scale = vae.config.scaling_factor

        def draw(rows: Tensor) -> Tensor:
            return scale * (mean[rows] + std[rows] * torch.randn_like(mean[rows]))

        return draw

    def held_out_views(self) -> banks.ViewBank:
        seeds = range(banks.HELD_OUT, banks.HELD_OUT + (64 if self.plan.characters > 100 else 4))
        return banks.view_bank(seeds, 4, size=SIZE, seed=0, device=self.device)

    # -- text

    def tokens(self, captions: list[str]) -> Tensor:
        ids = self.tokenizer(
            captions, padding="max_length", max_length=folders.MAX_TOKENS, truncation=True
        ).input_ids
        return torch.tensor(ids, device=self.device)

    def text_to_image(
        self, vae: AutoencoderKL, bank: banks.Bank
    ) -> tuple[CLIPTextModel, UNet2DConditionModel]:
        seed = self.seeded("sd")
        text = make_text_encoder(self.plan, self.vocabulary).to(self.device)
        unet = UNet2DConditionModel(
            in_channels=4, **unet_config(self.plan, self.plan.sd_channels, "2D")
        ).to(self.device)
        trainer = Trainer("sd", self.plan, {"text": text, "unet": unet}, self.work)
        draw, ids = self.latents(vae, bank.images), self.tokens(bank.captions)
        empty = self.tokens([""])

        def loss() -> Tensor:
            rows = self.rows(len(ids), "sd")
            dropped = torch.rand(len(rows), 1, device=self.device) < DROP
            states = text(torch.where(dropped, empty, ids[rows])).last_hidden_state
            return denoising_loss(
                lambda z, t: unet(z, t, states, return_dict=False)[0], draw(rows), self.alpha_bar
            )

        trainer.fit(loss, seed, self.log)
        return text, unet

    def controlnet(
        self, vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel, bank: banks.Bank
    ) -> ControlNetModel:
        seed = self.seeded("controlnet")
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
        net = net.to(self.device).requires_grad_(True)
        trainer = Trainer("controlnet", self.plan, {"controlnet": net}, self.work)
        draw, ids = self.latents(vae, bank.images), self.tokens(bank.captions)
        hint, empty = self.tokens(["best quality"]), self.tokens([""])

        def loss() -> Tensor:
            rows = self.rows(len(ids), "controlnet")
            dropped = torch.rand(len(rows), 1, device=self.device) < DROP
            states = text(torch.where(dropped, empty, ids[rows])).last_hidden_state
            hints = text(torch.where(dropped, empty, hint)).last_hidden_state
            tile = worn(bank.images[rows].float() / 255)

            def predict(z: Tensor, t: Tensor) -> Tensor:
                down, middle = net(z, t, hints, tile, return_dict=False)
                return unet(
                    z,
                    t,
                    states,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=middle,
                    return_dict=False,
                )[0]

            return denoising_loss(predict, draw(rows), self.alpha_bar)

        trainer.fit(loss, seed, self.log)
        return net

    # -- novel views

    def zero123(self, vae: AutoencoderKL) -> tuple[CLIPVision, nn.Linear, UNet2DConditionModel]:
        seed, plan = self.seeded("zero123"), self.plan
        eye = make_image_encoder(plan).to(self.device)
        camera = nn.Linear(plan.width + 4, plan.width).to(self.device)
        unet = UNet2DConditionModel(in_channels=8, **unet_config(plan, plan.channels, "2D"))
        unet = unet.to(self.device)
        modules = {"eye": eye, "camera": camera, "unet": unet}
        trainer = Trainer("zero123", plan, modules, self.work)
        seeds = [(7 * i + self.seed) % banks.HELD_OUT for i in range(plan.characters)]
        bank = banks.view_bank(seeds, plan.pictures, size=SIZE, seed=self.seed, device=self.device)
        draw = self.latents(vae, bank.views.flatten(0, 1))
        fixed, _ = self.encode(vae, bank.reference)  # the mode, not scaled: Zero123's convention
        offsets = camera_offset(bank.elevation_deg.flatten(), bank.azimuth_deg.flatten())

        def token(images: Tensor, offset: Tensor) -> Tensor:
            embedding = eye(clip_pixels(images)).image_embeds
            return camera(torch.cat([embedding, offset], dim=-1))[:, None]

        def loss() -> Tensor:
            rows = self.rows(len(offsets), "zero123")
            scene = torch.div(rows, plan.pictures, rounding_mode="floor")
            kept = (torch.rand(len(rows), 1, 1, device=self.device) >= DROP).float()
            states = kept * token(bank.reference[scene], offsets[rows])
            seen = kept[..., None] * fixed[scene]
            return denoising_loss(
                lambda z, t: unet(torch.cat([z, seen], 1), t, states, return_dict=False)[0],
                draw(rows),
                self.alpha_bar,
            )

        trainer.fit(loss, seed, self.log)
        self.measure_views(vae, token, unet)
        return eye, camera, unet

    @torch.no_grad()
    def measure_views(self, vae: AutoencoderKL, token: Callable, unet: nn.Module) -> None:
        """PSNR of sampled novel views of characters that training never saw."""
        bank = self.held_out_views()
        n_views = bank.views.shape[1]
        truth = bank.views.flatten(0, 1)
        reference = bank.reference.repeat_interleave(n_views, 0)
        offset = camera_offset(bank.elevation_deg.flatten(), bank.azimuth_deg.flatten())
        states, seen = token(reference, offset), self.encode(vae, reference)[0]
        for scale in (1.0, 3.0, 5.0):
            z = sample(
                lambda z, t: unet(torch.cat([z, seen], 1), t, states).sample,
                lambda z, t: unet(torch.cat([z, 0 * seen], 1), t, 0 * states).sample,
                tuple(seen.shape),
                scale=scale,
                steps=self.plan.sampling_steps,
                generator=torch.Generator(self.device).manual_seed(0),
            )
            views = self.decode(vae, z)
            self.quality[f"novel_view_psnr_cfg{scale:g}"] = psnr(views, truth / 255)
        rows = torch.stack([reference / 255, truth / 255, views])[:, :24]
        write_sheet(self.out / "zero123.png", rows)

    @torch.no_grad()
    def decode(self, vae: AutoencoderKL, z: Tensor) -> Tensor:
        """Pictures [N 3 S S] in [0, 1] of scaled latents."""
        parts = [vae.decode(part / vae.config.scaling_factor).sample for part in z.split(256)]
        return (torch.cat(parts).clamp(-1, 1) + 1) / 2

    # -- clips

    def video(self, vae: AutoencoderKL, text: CLIPTextModel) -> UNet3DConditionModel:
        seed, plan = self.seeded("video"), self.plan
        unet = UNet3DConditionModel(
            in_channels=4, **unet_config(plan, plan.video_channels, "3D")
        ).to(self.device)
        trainer = Trainer("video", plan, {"unet": unet}, self.work)
        n = plan.characters * 3 // 2
        bank = banks.clip_bank(n, plan.frames, size=SIZE, seed=self.seed, device=self.device)
        images = bank.images.flatten(0, 1)
        draw = self.latents(vae, images)
        frame = torch.arange(plan.frames, device=self.device)
        ids, empty = self.tokens(bank.captions), self.tokens([""])

        def loss() -> Tensor:
            rows = self.rows(len(ids), "video")
            dropped = torch.rand(len(rows), 1, device=self.device) < DROP
            states = text(torch.where(dropped, empty, ids[rows])).last_hidden_state
            z = draw((rows[:, None] * plan.frames + frame).flatten())
            z = z.unflatten(0, (len(rows), plan.frames)).transpose(1, 2)  # [B 4 F h w]
            return denoising_loss(
                lambda z, t: unet(z, t, states, return_dict=False)[0], z, self.alpha_bar
            )

        trainer.fit(loss, seed, self.log)
        return unet

    # -- pictures and folders

    @torch.no_grad()
    def sample_text(
        self,
        vae: AutoencoderKL,
        text: CLIPTextModel,
        unet: nn.Module,
        prompts: list[str],
        clip: int,
    ) -> Tensor:
        """Samples for prompts at scale 5: [N 3 S S], or clips' frames [N*F 3 S S]."""
        states = text(self.tokens(prompts)).last_hidden_state
        nothing = text(self.tokens([""])).last_hidden_state.expand_as(states)
        side = SIZE // 4
        shape = (len(prompts), 4, clip, side, side) if clip else (len(prompts), 4, side, side)
        z = sample(
            lambda z, t: unet(z, t, states).sample,
            lambda z, t: unet(z, t, nothing).sample,
            shape,
            scale=5.0,
            steps=self.plan.sampling_steps,
            generator=torch.Generator(self.device).manual_seed(0),
        )
        return self.decode(vae, z.transpose(1, 2).flatten(0, 1) if clip else z)

    def run(self) -> None:
        """Trains all parts and writes the folders, the sheets and quality.json."""
        bank = self.image_bank()
        vae = self.vae(bank)
        text, unet = self.text_to_image(vae, bank)
        species = ("panda", "fox", "rabbit", "frog", "robot", "duck")
        stills = [f"a toy {s}, {view} view" for view in ("front", "side", "back") for s in species]
        images = self.sample_text(vae, text, unet, stills, 0)
        write_sheet(self.out / "sd.png", images.unflatten(0, (3, len(species))))
        controlnet = self.controlnet(vae, text, unet, bank)
        del bank
        eye, camera, view_unet = self.zero123(vae)
        video_unet = self.video(vae, text)
        verbs = ("dancing", "jumping", "waving", "spinning", "walking", "standing still")
        clips = [f"a {s} is {v}, front view" for s, v in zip(species, verbs, strict=True)]
        frames = self.sample_text(vae, text, video_unet, clips, self.plan.frames)
        write_sheet(self.out / "video.png", frames.unflatten(0, (len(clips), self.plan.frames)))

        words = (self.vocabulary, self.merges)
        folders.write_text_folder(self.out / "sd", words, text, unet, vae)
        folders.write_text_folder(self.out / "text-to-video", words, text, video_unet, vae)
        folders.write_zero123(self.out / "zero123", eye, camera, view_unet, vae)
        folders.write_diffusers(self.out / "controlnet-tile", controlnet)
        for module in (vae, text, unet, controlnet, eye, view_unet, video_unet):
            count = sum(p.numel() for p in module.parameters()) / 1e6
            print(f"{type(module).__name__}: {count:.2f} M parameters")
        content = {"seed": self.seed, **dataclasses.asdict(self.plan), **self.quality}
        (self.out / "quality.json").write_text(json.dumps(content, indent=2) + "\n")
        print(json.dumps(self.quality, indent=2))


def pictures(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


def clip_pixels(images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Pictures normalised as the image encoder's preprocessor_config.json says."""
    channels = (
        images.float().div(255).unbind(1)
    )  # numbers, not tensors: a graph can't copy those in
    means, stds = folders.FEATURE_EXTRACTOR["image_mean"], folders.FEATURE_EXTRACTOR["image_std"]
    return torch.stack([(c - m) / s for c, m, s in zip(channels, means, stds, strict=True)], dim=1)


def worn(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Pictures as a coarse render shows them: blurred by one of three degrees, a little noisy."""
    blurred = [images]
    for factor in (2, 4):
        small = F.avg_pool2d(images, factor)
        blurred.append(F.interpolate(small, scale_factor=factor, mode="bilinear"))
    pick = torch.randint(0, 3, (len(images), 1, 1, 1), device=images.device)
    mixed = torch.where(pick == 0, blurred[0], torch.where(pick == 1, blurred[1], blurred[2]))
    strength = 0.06 * torch.rand(len(images), 1, 1, 1, device=images.device)
    return (mixed + strength * torch.randn_like(mixed)).clamp(0, 1)


def write_sheet(path: Path, rows: Float[Tensor, "R N 3 S S"]) -> None:
    """Rows of pictures in one PNG."""
    r, n, _, s, _ = rows.shape
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(r * s, n * s, 3)
    Image.fromarray((255 * sheet.clamp(0, 1)).round().byte().cpu().numpy()).save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the four model folders")
    parser.add_argument("--seed", type=int, default=0, help="of the banks and of the training")
    parser.add_argument("--tiny", action="store_true", help="a few steps of narrow models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Workshop(args.out, TINY if args.tiny else Plan(), args.seed, args.device).run()


if __name__ == "__main__":
    main()
