"""Pictures sampled with the word as it is, beside a training picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor

from ..files.whole import whole_file
from ..guidance.sds import classifier_free_guidance
from .frozen_models import FrozenModels

GAP = 4  # pixels between pictures


@torch.no_grad()
def sample_pictures(
    models: FrozenModels,
    text: Float[Tensor, "2 L D"],
    n: int,
    resolution: int,
    seed: int,
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
) -> Float[ndarray, "{n} {resolution} {resolution} 3"]:
    """n pictures in [0, 1] by DPM-Solver++. `text`: the prompt's states, then the empty prompt's.

    The same seed starts from the same noise, whatever the device.
    """
    unet, vae = models.unet, models.vae
    scheduler: Any = DPMSolverMultistepScheduler.from_config(models.scheduler.config)
    scheduler.set_timesteps(steps, device=unet.device)
    side = resolution // 2 ** (len(vae.config["block_out_channels"]) - 1)
    shape = (n, vae.config["latent_channels"], side, side)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(unet.device)
    text = text.to(unet.dtype).repeat_interleave(n, dim=0)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(z, t).to(unet.dtype)
        cond, uncond = unet(torch.cat([noisy, noisy]), t, text).sample.float().chunk(2)
        predicted = classifier_free_guidance(cond, uncond, guidance_scale, start="uncond")
        z = scheduler.step(predicted, t, z).prev_sample
    # one by one: the VAE, in float32, is what takes memory here
    z = z.to(vae.dtype) / vae.config["scaling_factor"]
    decoded = [vae.decode(one[None], return_dict=False)[0] for one in z]
    pictures = (torch.cat(decoded).float() / 2 + 0.5).clamp(0, 1)
    return pictures.permute(0, 2, 3, 1).cpu().numpy()


def write_row(path: Path, pictures: Sequence[Float[ndarray, "S S 3"]]) -> None:
    """The pictures side by side on white, as one PNG."""
    size = len(pictures[0])
    row = Image.new("RGB", (len(pictures) * (size + GAP) - GAP, size), "white")
    for i, picture in enumerate(pictures):
        pixels = (np.asarray(picture) * 255).round().astype(np.uint8)
        row.paste(Image.fromarray(pixels), (i * (size + GAP), 0))
    with whole_file(path) as part:
        row.save(part, "PNG")
