"""How each part of the toy priors is trained: what it is shown, and its loss.

A recipe gives its part finished and frozen. All draws follow from the seed.
"""

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import CLIPTokenizer

from . import banks, folders, networks
from .autoencoder import encode, latents, signed
from .captions import WORDS
from .denoising import alpha_bars, denoising_loss
from .folders import Network
from .plan import PARTS, SIZE, Plan
from .trainer import Trainer

DROP = 0.1  # share of the training examples without their condition, for classifier-free guidance


class Workshop:
    """What the recipes share: the plan, the seed, the words, the noise, the log."""

    def __init__(self, out: Path, plan: Plan, seed: int, device: str) -> None:
        self.out, self.plan, self.seed, self.device = out, plan, seed, device
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.alpha_bar = alpha_bars(device)
        self.vocabulary, self.merges = folders.byte_pairs(WORDS)
        folders.write_tokenizer(self.work / "tokenizer", self.vocabulary, self.merges)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.work / "tokenizer")

    def seeded(self, part: str) -> int:
        """The part's seed, which the weights that are drawn next follow from."""
        seed = 1000 * self.seed + 100_000 * PARTS.index(part)
        torch.manual_seed(seed)
        return seed

    def train(
        self, part: str, seed: int, modules: dict[str, nn.Module], loss: Callable[[], Tensor]
    ) -> None:
        Trainer(part, self.plan, modules, self.work).fit(loss, seed, self.log)

    def log(self, part: str, step: int, loss: float) -> None:
        with open(self.out / "log.csv", "a", newline="") as file:
            csv.writer(file).writerow([part, step, f"{loss:.6f}"])

    def rows(self, n: int, part: str) -> Tensor:
        """Which of n examples a batch has."""
        return torch.randint(0, n, (self.plan.batch[part],), device=self.device)

    def dropped(self, n: int) -> Tensor:
        """Which of n examples go without their caption [n 1]."""
        return torch.rand(n, 1, device=self.device) < DROP

    def tokens(self, captions: list[str]) -> Tensor:
        ids = self.tokenizer(
            captions, padding="max_length", max_length=folders.MAX_TOKENS, truncation=True
        ).input_ids
        return torch.tensor(ids, device=self.device)

    def image_bank(self) -> banks.Bank:
        plan = self.plan
        return banks.image_bank(
            plan.characters, plan.pictures, size=SIZE, seed=self.seed, device=self.device
        )

    @functools.cached_property
    def clips(self) -> banks.Bank:
        """The bank of both UNets of clips, drawn when the first asks for it."""
        n = self.plan.characters * 3 // 2
        return banks.clip_bank(n, self.plan.frames, size=SIZE, seed=self.seed, device=self.device)

    @functools.cached_property
    def flow_clips(self) -> banks.Bank:
        """The bank of the flow prior's two networks."""
        n, frames = self.plan.flow_clips, self.plan.flow_frames
        return banks.clip_bank(n, frames, size=SIZE, seed=self.seed, device=self.device)


def autoencoder(shop: Workshop, bank: banks.Bank) -> Network:
    """The VAE that all parts share."""
    seed = shop.seeded("vae")
    vae = networks.make_vae(shop.plan).to(shop.device)

    def loss() -> Tensor:
        x = signed(bank.images[shop.rows(len(bank.images), "vae")])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
        kl = posterior.mean.square() + posterior.var - 1 - posterior.logvar
        return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x) + 1e-6 * kl.mean()

    shop.train("vae", seed, {"vae": vae}, loss)
    spread = encode(vae, bank.images[:2048])[0].std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    return vae


def text_to_image(shop: Workshop, vae: Network, bank: banks.Bank) -> tuple[Network, Network]:
    """The text encoder and the UNet."""
    seed = shop.seeded("sd")
    text = networks.make_text_encoder(shop.plan, shop.vocabulary).to(shop.device)
    unet = networks.make_unet(shop.plan, shop.plan.sd_channels).to(shop.device)
    draw, ids = latents(vae, bank.images), shop.tokens(bank.captions)
    empty = shop.tokens([""])

    def loss() -> Tensor:
        rows = shop.rows(len(ids), "sd")
        dropped = shop.dropped(len(rows))
        states = text(torch.where(dropped, empty, ids[rows])).last_hidden_state
        return denoising_loss(
            lambda z, t: unet(z, t, states, return_dict=False)[0], draw(rows), shop.alpha_bar
        )

    shop.train("sd", seed, {"text": text, "unet": unet}, loss)
    return text, unet


def controlnet(
    shop: Workshop, vae: Network, text: Network, unet: Network, bank: banks.Bank
) -> Network:
    """The tile ControlNet: a worn picture and `best quality` to the picture as it was."""
    seed = shop.seeded("controlnet")
    net = networks.make_controlnet(unet).to(shop.device)
    draw, ids = latents(vae, bank.images), shop.tokens(bank.captions)
    hint, empty = shop.tokens(["best quality"]), shop.tokens([""])

    def loss() -> Tensor:
        rows = shop.rows(len(ids), "controlnet")
        dropped = shop.dropped(len(rows))
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

        return denoising_loss(predict, draw(rows), shop.alpha_bar)

    shop.train("controlnet", seed, {"controlnet": net}, loss)
    return net


def zero123(shop: Workshop, vae: Network) -> tuple[Network, nn.Linear, Network]:
    """The image encoder, the camera projection and the UNet of novel views."""
    seed, plan = shop.seeded("zero123"), shop.plan
    eye = networks.make_image_encoder(plan).to(shop.device)
    camera = networks.make_camera_projection(plan).to(shop.device)
    unet = networks.make_unet(plan, plan.channels, in_channels=8).to(shop.device)
    seeds = [(7 * i + shop.seed) % banks.HELD_OUT for i in range(plan.characters)]
    bank = banks.view_bank(seeds, plan.pictures, size=SIZE, seed=shop.seed, device=shop.device)
    draw = latents(vae, bank.views.flatten(0, 1))
    fixed, _ = encode(vae, bank.reference)  # the mode, not scaled: Zero123's convention
    offsets = camera_offset(bank.elevation_deg.flatten(), bank.azimuth_deg.flatten())

    def loss() -> Tensor:
        rows = shop.rows(len(offsets), "zero123")
        scene = torch.div(rows, plan.pictures, rounding_mode="floor")
        kept = (torch.rand(len(rows), 1, 1, device=shop.device) >= DROP).float()
        states = kept * view_token(eye, camera, bank.reference[scene], offsets[rows])
        seen = kept[..., None] * fixed[scene]
        return denoising_loss(
            lambda z, t: unet(torch.cat([z, seen], 1), t, states, return_dict=False)[0],
            draw(rows),
            shop.alpha_bar,
        )

    shop.train("zero123", seed, {"eye": eye, "camera": camera, "unet": unet}, loss)
    return eye, camera, unet


def video(shop: Workshop, vae: Network, text: Network) -> Network:
    """The UNet of clips."""
    seed = shop.seeded("video")
    unet = networks.make_video_unet(shop.plan).to(shop.device)
    bank = shop.clips
    draw = clip_latents(vae, bank.images)
    ids, empty = shop.tokens(bank.captions), shop.tokens([""])

    def loss() -> Tensor:
        rows = shop.rows(len(ids), "video")
        dropped = shop.dropped(len(rows))
        states = text(torch.where(dropped, empty, ids[rows])).last_hidden_state
        return denoising_loss(
            lambda z, t: unet(z, t, states, return_dict=False)[0], draw(rows), shop.alpha_bar
        )

    shop.train("video", seed, {"unet": unet}, loss)
    return unet


def image_video(shop: Workshop, vae: Network, text: Network, video_unet: Network) -> Network:
    """The UNet of clips whose first frame is given, from the one that knows text alone.

    The first frame comes as a coarse render shows it, so that it is trusted for what the subject is
    and not for its grain. Caption and picture are left out each for itself.
    """
    seed = shop.seeded("image_video")
    unet = networks.make_image_video_unet(shop.plan, video_unet).to(shop.device)
    bank = shop.clips
    draw = clip_latents(vae, bank.images)
    ids, empty = shop.tokens(bank.captions), shop.tokens([""])

    def loss() -> Tensor:
        rows = shop.rows(len(ids), "image_video")
        states = text(torch.where(shop.dropped(len(rows)), empty, ids[rows])).last_hidden_state
        kept = ~shop.dropped(len(rows))[..., None, None]
        seen = kept * picture_latents(vae, worn(bank.images[rows, 0].float() / 255))
        return denoising_loss(
            lambda z, t: unet(beside(z, seen), t, states, return_dict=False)[0],
            draw(rows),
            shop.alpha_bar,
        )

    shop.train("image_video", seed, {"unet": unet}, loss)
    return unet


def clip_latents(vae: Network, clips: UInt8[Tensor, "N F 3 S S"]) -> Callable[[Tensor], Tensor]:
    """A function of an index that draws scaled latents [B 4 F h w] of those clips."""
    draw, frames = latents(vae, clips.flatten(0, 1)), clips.shape[1]
    frame = torch.arange(frames, device=clips.device)

    def draw_clips(rows: Tensor) -> Tensor:
        z = draw((rows[:, None] * frames + frame).flatten())
        return z.unflatten(0, (len(rows), frames)).transpose(1, 2)

    return draw_clips


@torch.no_grad()
def picture_latents(vae: Network, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 4 h w"]:
    """What the UNet of clips is shown of their first frames: the mode, scaled."""
    return vae.config.scaling_factor * vae.encode(2 * images - 1).latent_dist.mode()


def beside(
    z: Float[Tensor, "B 4 F h w"], seen: Float[Tensor, "B 4 h w"]
) -> Float[Tensor, "B 8 F h w"]:
    """Clips' latents, and a picture's beside those of every frame."""
    return torch.cat([z, seen[:, :, None].expand_as(z)], dim=1)


def camera_offset(
    elevation_deg: Float[Tensor, " B"], azimuth_deg: Float[Tensor, " B"]
) -> Float[Tensor, "B 4"]:
    """Zero123's numbers for a camera, as seen from the reference at angles 0 and equal distance."""
    e, a = torch.deg2rad(elevation_deg), torch.deg2rad(azimuth_deg)
    return torch.stack([-e, a.sin(), a.cos(), torch.zeros_like(e)], dim=-1)


def view_token(
    eye: Network, camera: nn.Linear, images: UInt8[Tensor, "B 3 S S"], offset: Float[Tensor, "B 4"]
) -> Float[Tensor, "B 1 D"]:
    """What Zero123's UNet is told of a picture and of the camera that it is asked about."""
    embedding = eye(clip_pixels(images)).image_embeds
    return camera(torch.cat([embedding, offset], dim=-1))[:, None]


def clip_pixels(images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Pictures normalised as the image encoder's preprocessor_config.json says."""
    channels = images.float().div(255).unbind(1)
    # numbers, not tensors: a graph can't copy those in
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
