"""`animate124 check-model FOLDER`: whether a prior's formulas and a model's weights fit together.

A toy character's clip is encoded by the model's own VAE, noise is added at three levels, and the
prior says what noise it sees there, told the truth about the clip and without guidance. What
counts is how much of the noise it finds beyond what a fixed share of the noisy latents would: of a
formula for another kind of prediction, of a wrong time, of latents that lack their normalisation,
or of weights that mean nothing, little or less than nothing is left.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import threestudio
import torch
from argument_types import whole_number
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from ..data.cameras import Cameras
from ..events import say_error
from ..guidance.clips import Clips
from ..guidance.codecs import CausalVideoCodec
from ..guidance.conditions import noised_part
from ..guidance.distillation import PromptedDistillation, ScoreDistillation
from ..guidance.noise import Noise, add_noise
from ..pretrained.models import stated_pipeline
from ..toyworld.characters import make_character
from ..toyworld.motions import animate
from ..toyworld.ray_tracing import render
from ..toyworld.subject import write_subject

LEVELS = (0.25, 0.5, 0.75)  # of the way from the data to the noise
FITS = 0.5  # share of the noise, at every level
PROMPT = "a panda is dancing"
SIDES = ("width", "height")  # of what a prior of clips is shown
TEXT = "animate124-prompt-processor"


class Family(NamedTuple):
    """What reads a model."""

    guidance: str  # registered names
    prompt_processor: str = TEXT


FAMILIES = {  # by the pipeline that the folder's model_index.json states
    "StableDiffusionPipeline": Family("animate124-image-guidance"),
    "Zero123Pipeline": Family("animate124-zero123-guidance"),
    "TextToVideoSDPipeline": Family(
        "animate124-zeroscope-guidance", "animate124-zeroscope-prompt-processor"
    ),
    "WanPipeline": Family("animate124-wan-guidance", "animate124-wan-prompt-processor"),
    "WanPipeline with expand_timesteps": Family(
        "animate124-wan-ti2v-guidance", "animate124-wan-prompt-processor"
    ),
    "WanVACEPipeline": Family("animate124-wan-vace-guidance", "animate124-wan-prompt-processor"),
    "SkyReelsV2ImageToVideoPipeline": Family(
        "animate124-skyreels-guidance", "animate124-wan-prompt-processor"
    ),
    "LTXPipeline": Family("animate124-ltx-guidance", "animate124-ltx-prompt-processor"),
    "CogVideoXPipeline": Family(
        "animate124-cogvideox-guidance", "animate124-cogvideox-prompt-processor"
    ),
    "CogVideoXImageToVideoPipeline": Family(
        "animate124-cogvideox-image-guidance", "animate124-cogvideox-prompt-processor"
    ),
    "StableVideoDiffusionPipeline": Family("animate124-svd-guidance"),  # reads no prompt
}
MODEL = "pretrained_model_name_or_path"


def family_of(model: str, guidance: str | None) -> Family:
    """Of the asked guidance, else of the model; a ValueError where the folder states no pipeline
    that a prior here reads."""
    if guidance is not None:
        known = {family.guidance: family for family in FAMILIES.values()}
        return known.get(guidance, Family(guidance))
    index = stated_pipeline(model)
    stated = index.get("_class_name")
    if index.get("expand_timesteps"):
        stated = f"{stated} with expand_timesteps"
    if stated not in FAMILIES:
        what = f"is of a {stated}" if stated else "has no model_index.json that states a pipeline"
        raise ValueError(
            f"{model} {what}, and there is no prior for that: models of {', '.join(FAMILIES)} "
            "will do. Another prior that might read it is asked for by --guidance NAME."
        )
    return FAMILIES[stated]


def read_prompt(family: Family, model: str) -> Any:
    """The prompt as the model's text encoder has it, which is dropped again."""
    config = {MODEL: model, "prompt": PROMPT, "use_cache": False}
    return threestudio.find(family.prompt_processor)(config)()


def load_prior(
    family: Family, model: str, size: int | None, options: Mapping[str, Any], folder: Path
) -> ScoreDistillation:
    """The prior with this model; folder: for files that it wants to be shown."""
    kind = threestudio.find(family.guidance)
    takes = {field.name for field in dataclasses.fields(kind.Config)}
    config: dict[str, Any] = {MODEL: model}
    if "cond_image_path" in takes and not kind.clips_only:
        subject = write_subject(folder, "panda", motion="dance", time=0.25)
        config["cond_image_path"] = str(subject["cut-out"])
    if size is not None:
        config |= {name: size for name in ("width", "height", "size") if name in takes}
    return kind({**config, **options})


def frames_of(prior: ScoreDistillation, asked: int | None) -> int:
    if asked is not None:
        return asked
    usual = 17 if isinstance(prior.codec, CausalVideoCodec) else 16 if prior.clips_only else 2
    return getattr(prior.network.config, "num_frames", None) or usual  # some know one length alone


def shipped_clip(n: int, prior: ScoreDistillation) -> dict[str, Any]:
    """A panda that dances in front of a camera at rest: a batch as the renderer's, with `rgb`
    [F H W 3]. Without time, a prior of pictures has them from several sides."""
    wide, high = (getattr(prior, side, getattr(prior.cfg, "size", 256)) for side in SIDES)
    tau, turn = torch.arange(n) / n, torch.zeros(n)
    if not prior.clips_only:
        tau, turn = torch.full((n,), 0.25), torch.linspace(-30, 30, n)
    scene = animate(make_character("panda"), "dance", tau)
    batch = Cameras.of(torch.zeros(n), turn).batch(high, wide, tau)
    rgb = render(scene, batch, supersample=2)["rgb"]
    batch |= {"rgb": rgb, "num_frames": n}
    return {k: v.to(prior.device) if isinstance(v, Tensor) else v for k, v in batch.items()}


@torch.no_grad()
def explained(
    prior: ScoreDistillation, z: Tensor, condition: Mapping[str, Tensor], level: float
) -> float:
    """The share of the noise that the prior finds, beyond what c z_t with the best c does.

    level: of the way from the data to the noise; condition: of the conditional half.
    """
    t = torch.full((len(z),), prior.noise.time_at(level), device=z.device)
    alpha, sigma = prior.noise.scales(t)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    z_t = add_noise(z, eps, alpha, sigma)
    held = dict(condition)
    found, blind = (
        noised_part(eps - guess, held).square().sum()
        for guess in (prior.noise_in(z_t, t, held), (eps * z_t).sum() / z_t.square().sum() * z_t)
    )
    return float(1 - found / blind)


class Seen(NamedTuple):
    """What a prior made of the clip."""

    latents: Float[Tensor, "B C *size"]
    shares: dict[float, float]  # level -> explained


@torch.no_grad()
def look(prior: ScoreDistillation, prompt: Any, frames: int) -> Seen:
    batch = shipped_clip(frames, prior)
    rgb = batch.pop("rgb")
    pictures, condition = prior.prepare(rgb.permute(0, 3, 1, 2), prompt, batch)
    z = prior.to_latents(pictures)
    told = {name: rows[: len(rows) // 2] for name, rows in condition.items()}
    return Seen(z, {level: explained(prior, z, told, level) for level in LEVELS})


def millions(module: torch.nn.Module) -> str:
    n = sum(p.numel() for p in module.parameters())
    return f"{type(module).__name__}, {n / 1e6:.4g} M weights"


def described(noise: Noise) -> str:
    """Its class and what it was told, but for tables."""
    told = {k: v for k, v in vars(noise).items() if not isinstance(v, Tensor)}
    return " ".join([type(noise).__name__, *(f"{k}={v}" for k, v in told.items())])


def check_model(model: str, args: argparse.Namespace) -> bool:
    """Says what it finds, step by step; whether formulas and weights fit."""
    family = family_of(model, args.guidance)
    if args.prompt_processor is not None:
        family = family._replace(prompt_processor=args.prompt_processor)
    kind = threestudio.find(family.guidance)
    if args.frames is not None and issubclass(kind, Clips):
        kind.check_frames(args.frames)
    prompt = None
    if issubclass(kind, PromptedDistillation):
        prompt = read_prompt(family, model)
        print(f"text encoder: {PROMPT!r} is {list(prompt.text_embeddings.shape[1:])}")
    options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(args.overrides))
    with tempfile.TemporaryDirectory() as folder:
        prior = load_prior(family, model, args.size, options, Path(folder))
    for network in prior.networks:
        print(f"{family.guidance}: {millions(network)}, {prior.dtype}")
    print(f"{type(prior.codec).__name__}: {millions(prior.vae)}")
    print(f"noise: {described(prior.noise)}")
    seen = look(prior, prompt, frames_of(prior, args.frames))
    z = seen.latents
    print(f"latents: {list(z.shape)}, mean {z.mean():.2f}, deviation {z.std():.2f} (1 is usual)")
    for level, share in seen.shares.items():
        print(f"noise at {level:g} of the way: {max(share, -1):.0%} of it explained")
    fits = min(seen.shares.values()) >= FITS
    if fits:
        print("The prediction explains the noise: formulas and weights fit.")
    else:
        print(
            f"The prediction does not explain the noise ({FITS:.0%} is needed everywhere): "
            "the weights are damaged or untrained, or the model is of another kind."
        )
    return fits


def setting(text: str) -> str:
    """A word of the kind that OmegaConf reads: without `=` it would mean null there."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return text


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="animate124 check-model",
        description="Whether a prior's formulas and a model's weights fit: the model denoises a "
        "clip of a toy character. Status 0: they fit; 1: they don't; 2: it can't be loaded.",
    )
    p.add_argument("model", metavar="FOLDER", help="in diffusers' format, or a hub id")
    p.add_argument("--guidance", metavar="NAME", help="the prior (default: by model_index.json)")
    p.add_argument("--prompt-processor", metavar="NAME", help="... and what reads its prompts")
    p.add_argument("--frames", type=whole_number(1, 256), help="of the clip")
    p.add_argument(
        "--size",
        type=whole_number(16, 4096),
        metavar="PIXELS",
        help="of a side (default: what the model is made for; 64 for the toy priors)",
    )
    p.add_argument(
        "overrides",
        nargs="*",
        default=[],
        type=setting,
        metavar="key=value",
        help="of the guidance's config",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(arguments)
    try:
        return 0 if check_model(args.model, args) else 1
    except (ValueError, OSError, KeyError) as error:
        say_error(error)
        return 2
