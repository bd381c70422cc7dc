"""Trains the toy priors: small diffusion models of the toy world, in diffusers' folder format.

    python -m animate124.toyworld.train --out load/toy-priors             # minutes on a GPU
    python -m animate124.toyworld.train --out load/toy-priors --only image-to-video
    python -m animate124.toyworld.train --out load/toy-priors --only image-to-video-flow
    python -m animate124.toyworld.train --out OUT --tiny          # a minute on a CPU, for tests

One after another: the VAE that all share, the text encoder with the text-to-image UNet, the tile
ControlNet on it, Zero123, the text-to-video UNet, and from it the one that also sees the clip's
first frame; then the flow prior, a video VAE and a transformer that sees that frame too. Each part
saves its state (weights, averages, optimizer) every few hundred steps and goes on from there when
the same command runs again; a part that is done is skipped. The last two alone start from the
folder OUT/text-to-video. All draws follow from --seed. log.csv has the losses, quality.json what
was measured on characters that training never saw.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from . import banks, flow_recipes, folders, recipes
from .clip_coder import ClipCoder
from .folders import Network
from .measures import (
    autoencoder_psnr,
    clip_figures,
    flow_figures,
    sample_prompts,
    view_psnr,
    write_sheet,
)
from .plan import SIZE, TINY, Plan
from .recipes import Workshop

SPECIES = ("panda", "fox", "rabbit", "frog", "robot", "duck")  # on the sheets
STILLS = [f"a toy {s}, {view} view" for view in ("front", "side", "back") for s in SPECIES]
VERBS = ("dancing", "jumping", "waving", "spinning", "walking", "standing still")
FLOW = "image-to-video-flow"  # folder of the flow prior
CLIPS = [f"a {s} is {verb}, front view" for s, verb in zip(SPECIES, VERBS, strict=True)]


def train(out: Path, plan: Plan, seed: int, device: str) -> None:
    """Trains all parts and writes the folders, the sheets and quality.json."""
    shop = Workshop(out, plan, seed, device)
    bank = shop.image_bank()
    vae = recipes.autoencoder(shop, bank)
    text, unet = recipes.text_to_image(shop, vae, bank)
    stills = sample_prompts(shop, vae, text, unet, STILLS)
    write_sheet(out / "sd.png", stills.unflatten(0, (3, len(SPECIES))))
    controlnet = recipes.controlnet(shop, vae, text, unet, bank)
    del bank
    eye, camera, view_unet = recipes.zero123(shop, vae)
    unseen = held_out_views(plan, device)
    figures, views = view_psnr(shop, vae, (eye, camera, view_unet), unseen)
    write_sheet(out / "zero123.png", views[:, :24])
    video_unet = recipes.video(shop, vae, text)
    frames = sample_prompts(shop, vae, text, video_unet, CLIPS, plan.frames)
    write_sheet(out / "video.png", frames.unflatten(0, (len(CLIPS), plan.frames)))

    words = (shop.vocabulary, shop.merges)
    folders.write_text_folder(out / "sd", words, text, unet, vae)
    folders.write_text_folder(out / "text-to-video", words, text, video_unet, vae)
    folders.write_zero123(out / "zero123", eye, camera, view_unet, vae)
    folders.write_diffusers(out / "controlnet-tile", controlnet)
    folders.write_words(out / "words.json")
    for module in (vae, text, unet, controlnet, eye, view_unet, video_unet):
        say_size(module)
    reached = autoencoder_psnr(vae, unseen.views.flatten(0, 1)[:256])
    figures |= {"scaling": vae.config.scaling_factor, "vae_psnr": reached}
    write_quality(out, {"seed": seed, **dataclasses.asdict(plan), **figures})
    image_to_video(shop, vae, text, video_unet)
    image_to_video_flow(shop, text)


def train_flow(out: Path, plan: Plan, seed: int, device: str) -> None:
    """The flow prior alone, with text-to-video's text encoder."""
    text = folders.read_text_folder(out / "text-to-video", device)[1]
    image_to_video_flow(Workshop(out, plan, seed, device), text)


def image_to_video_flow(shop: Workshop, text: Network) -> None:
    """Trains it, and writes its folder, its sheet and its figures into quality.json."""
    coder = ClipCoder(flow_recipes.causal_autoencoder(shop))
    net = flow_recipes.flow_transformer(shop, coder, text)
    folders.write_flow(shop.out / FLOW, shop.out / "text-to-video", net, coder.vae)
    unseen = held_out_clips(shop.plan, shop.plan.flow_frames, shop.device)
    figures, clips = flow_figures(shop, coder, text, net, unseen)
    shown = clips[[0, 1, -2], :4].transpose(0, 1).flatten(0, 1)  # truth, the VAE's, sample
    write_sheet(shop.out / f"{FLOW}.png", shown)
    for module in (coder.vae, net):
        say_size(module)
    plan = {k: v for k, v in dataclasses.asdict(shop.plan).items() if k.startswith("flow_")}
    settings = {"steps": shop.plan.steps, "batch": shop.plan.batch}
    write_quality(shop.out, {**settings, **plan, **figures})


def train_image_to_video(out: Path, plan: Plan, seed: int, device: str) -> None:
    """The UNet that sees the first frame alone, from the folder of text-to-video."""
    shop = Workshop(out, plan, seed, device)
    vae, text, unet = folders.read_text_folder(out / "text-to-video", device)
    image_to_video(shop, vae, text, unet)


def image_to_video(shop: Workshop, vae: Network, text: Network, video_unet: Network) -> None:
    """Trains it, and writes its folder, its sheet and its figures into quality.json."""
    unet = recipes.image_video(shop, vae, text, video_unet)
    folders.write_diffusers(shop.out / "image-to-video", unet)
    unseen = held_out_clips(shop.plan, shop.plan.frames, shop.device)
    figures, clips = clip_figures(shop, vae, text, (video_unet, unet), unseen)
    shown = clips[[0, -2], :4].transpose(0, 1).flatten(0, 1)  # truth and sample by turns
    write_sheet(shop.out / "image-to-video.png", shown)
    say_size(unet)
    settings = {"steps": shop.plan.steps, "batch": shop.plan.batch}
    channels = {"image_video_channels": shop.plan.image_video_channels}
    write_quality(shop.out, {**settings, **channels, **figures})


def say_size(module: Network) -> None:
    count = sum(p.numel() for p in module.parameters()) / 1e6
    print(f"{type(module).__name__}: {count:.2f} M parameters")


def write_quality(out: Path, figures: dict) -> None:
    """Into quality.json, beside what is there."""
    path = out / "quality.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **figures}, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def held_out_clips(plan: Plan, frames: int, device: str) -> banks.Bank:
    """Whole clips of characters that training never sees."""
    return banks.clip_bank(
        64 if plan.characters > 100 else 2,
        frames,
        size=SIZE,
        seed=0,
        device=device,
        characters=range(banks.HELD_OUT, banks.HELD_OUT + 5000),
        whole_rate=1.0,
    )


def held_out_views(plan: Plan, device: str) -> banks.ViewBank:
    """Views of characters that training never sees."""
    seeds = range(banks.HELD_OUT, banks.HELD_OUT + (64 if plan.characters > 100 else 4))
    return banks.view_bank(seeds, 4, size=SIZE, seed=0, device=device)


ALONE = {"image-to-video": train_image_to_video, FLOW: train_flow}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains the toy priors.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    parser.add_argument("--only", choices=ALONE, help="that part, from OUT/text-to-video")
    parser.add_argument("--seed", type=int, default=0, help="of the banks and of the training")
    parser.add_argument("--tiny", action="store_true", help="a few steps of narrow models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == "cuda":  # the CPU only makes scenes of tiny tensors
        torch.set_num_threads(1)  # more of them wait for each other longer than they work
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = ALONE.get(args.only, train)
    run(args.out, TINY if args.tiny else Plan(), args.seed, args.device)


if __name__ == "__main__":
    main()
