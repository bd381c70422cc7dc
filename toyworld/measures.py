"""What trained priors give: samples, how near to the truth they are, and sheets of them."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..files.pictures import save_png, to_picture
from .autoencoder import decode, encode
from .banks import Bank, ViewBank
from .clip_coder import ClipCoder
from .denoising import sample
from .flow_recipes import velocity
from .folders import Network
from .plan import SIZE
from .recipes import Workshop, beside, camera_offset, picture_latents, view_token
from .rectified_flow import euler

VIEW_SCALES = (1.0, 3.0, 5.0)  # of classifier-free guidance
CLIP_SCALES = (1.0, 2.0, 4.0)
PROMPT_SCALE = 5.0


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures in [0, 1], in dB."""
    return float((-10 * (a - b).square().flatten(1).mean(1).log10()).mean())


@torch.no_grad()
def autoencoder_psnr(vae: Network, images: UInt8[Tensor, "N 3 S S"]) -> float:
    """Of pictures that were encoded and decoded."""
    parts = [vae.decode(z).sample for z in encode(vae, images)[0].split(64)]
    return psnr((torch.cat(parts).clamp(-1, 1) + 1) / 2, images / 255)


@torch.no_grad()
def view_psnr(
    shop: Workshop, vae: Network, prior: tuple[Network, torch.nn.Linear, Network], bank: ViewBank
) -> tuple[dict[str, float], Float[Tensor, "3 N 3 S S"]]:
    """Figures of sampled novel views by their guidance scale; rows of reference, truth, sample."""
    eye, camera, unet = prior
    n_views = bank.views.shape[1]
    truth = bank.views.flatten(0, 1)
    reference = bank.reference.repeat_interleave(n_views, 0)
    offset = camera_offset(bank.elevation_deg.flatten(), bank.azimuth_deg.flatten())
    states, seen = view_token(eye, camera, reference, offset), encode(vae, reference)[0]
    samples = []
    for scale in VIEW_SCALES:
        z = sample(
            lambda z, t: unet(torch.cat([z, seen], 1), t, states).sample,
            lambda z, t: unet(torch.cat([z, 0 * seen], 1), t, 0 * states).sample,
            tuple(seen.shape),
            scale=scale,
            steps=shop.plan.sampling_steps,
            generator=torch.Generator(shop.device).manual_seed(0),
        )
        samples.append(decode(vae, z))
    figures = {
        f"novel_view_psnr_cfg{scale:g}": psnr(views, truth / 255)
        for scale, views in zip(VIEW_SCALES, samples, strict=True)
    }
    return figures, torch.stack([reference / 255, truth / 255, samples[-1]])


@torch.no_grad()
def sample_prompts(
    shop: Workshop, vae: Network, text: Network, unet: Network, prompts: list[str], frames: int = 0
) -> Float[Tensor, "N 3 S S"]:
    """A picture of each prompt, or the frames of a clip of each."""
    states = text(shop.tokens(prompts)).last_hidden_state
    nothing = text(shop.tokens([""])).last_hidden_state.expand_as(states)
    side = SIZE // 4
    shape = (len(prompts), 4, *([frames] if frames else []), side, side)
    z = sample(
        lambda z, t: unet(z, t, states).sample,
        lambda z, t: unet(z, t, nothing).sample,
        shape,
        scale=PROMPT_SCALE,
        steps=shop.plan.sampling_steps,
        generator=torch.Generator(shop.device).manual_seed(0),
    )
    return decode(vae, z.transpose(1, 2).flatten(0, 1) if frames else z)


@torch.no_grad()
def sample_clips(
    shop: Workshop,
    vae: Network,
    text: Network,
    unet: Network,
    bank: Bank,
    scale: float,
) -> Float[Tensor, "N F 3 S S"]:
    """Clips of the bank's captions and first frames; the unconditional half keeps the frame.

    A UNet of four channels isn't shown the frame.
    """
    states = text(shop.tokens(bank.captions)).last_hidden_state
    nothing = text(shop.tokens([""])).last_hidden_state.expand_as(states)
    seen = picture_latents(vae, bank.images[:, 0].float() / 255)
    sees = unet.config.in_channels == 8

    def answer(z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        return unet(beside(z, seen) if sees else z, t, states).sample

    z = sample(
        lambda z, t: answer(z, t, states),
        lambda z, t: answer(z, t, nothing),
        (len(seen), 4, bank.images.shape[1], *seen.shape[2:]),
        scale=scale,
        steps=shop.plan.sampling_steps,
        generator=torch.Generator(shop.device).manual_seed(0),
    )
    return decode(vae, z.transpose(1, 2).flatten(0, 1)).unflatten(0, bank.images.shape[:2])


def motion(clips: Float[Tensor, "N F 3 S S"]) -> Float[Tensor, " N"]:
    """How much changes from frame to frame: the mean square."""
    return clips.diff(dim=1).square().flatten(1).mean(1)


def clip_figures(
    shop: Workshop, vae: Network, text: Network, unets: tuple[Network, Network], bank: Bank
) -> tuple[dict[str, float], Float[Tensor, "5 N F 3 S S"]]:
    """Figures of clips from the text-to-video UNet, at scale 1, and from the one that sees the
    first frame, by their guidance scale; rows of truth and of these samples.

    dB against the true frames but the first, and motion as a share of the truth's (median).
    """
    blind, seeing = unets
    truth = bank.images / 255
    asked = [("text_only", blind, 1.0)]
    asked += [(f"cfg{scale:g}", seeing, scale) for scale in CLIP_SCALES]
    figures, rows = {}, [truth]
    for name, unet, scale in asked:
        clips = sample_clips(shop, vae, text, unet, bank, scale)
        figures |= beside_truth(f"clip_{{}}_{name}", clips, truth)
        rows.append(clips)
    return figures, torch.stack(rows)


def beside_truth(
    name: str, clips: Float[Tensor, "N F 3 S S"], truth: Float[Tensor, "N F 3 S S"]
) -> dict[str, float]:
    """Their dB and their share of the truth's motion; `name` with {} for which of the two."""
    share = motion(clips) / motion(truth).clamp_min(1e-4)
    return {
        name.format("psnr"): psnr(clips[:, 1:].flatten(0, 1), truth[:, 1:].flatten(0, 1)),
        name.format("motion"): float(share.median()),
    }


@torch.no_grad()
def flow_figures(
    shop: Workshop, coder: ClipCoder, text: Network, net: Network, bank: Bank
) -> tuple[dict[str, float], Float[Tensor, "6 N F 3 S S"]]:
    """Figures of the flow prior's clips as `clip_figures` has them, of the text alone and of the
    first frame, and of the VAE; rows of truth, of what the VAE gives back and of these samples."""
    truth = bank.images / 255
    back = coder.decode(coder.latents(bank.images)(torch.arange(len(truth))))
    figures, rows = {"flow_vae_psnr": psnr(back.flatten(0, 1), truth.flatten(0, 1))}, [truth, back]
    states = text(shop.tokens(bank.captions)).last_hidden_state
    nothing = text(shop.tokens([""])).last_hidden_state.expand_as(states)
    first = coder.first(truth[:, 0])
    n, channels, _, high, wide = first.shape
    size = (n, channels, 1 + (truth.shape[1] - 1) // 4, high, wide)
    for name, sees, scale in [
        ("text_only", False, 1.0),
        *((f"cfg{s:g}", True, s) for s in CLIP_SCALES),
    ]:
        z = euler(
            velocity(net, states),
            velocity(net, nothing),
            size,
            first,
            torch.full((n,), sees, device=first.device),
            scale=scale,
            steps=shop.plan.sampling_steps,
            generator=torch.Generator(shop.device).manual_seed(0),
        )
        rows.append(coder.decode(z))
        figures |= beside_truth(f"flow_clip_{{}}_{name}", rows[-1], truth)
    return figures, torch.stack(rows)


def write_sheet(path: Path, rows: Float[Tensor, "R N 3 S S"]) -> None:
    """Rows of pictures in one PNG."""
    r, n, _, s, _ = rows.shape
    save_png(path, to_picture(rows.permute(0, 3, 1, 4, 2).reshape(r * s, n * s, 3)))
