"""What a guidance is held to. A row of the table says, independently of the leaf, which way its
noise goes, where its guidance starts from and how far it goes, what weighs its gradient and which
latents it makes; `check` looks at one call. A new guidance is tested by a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from animate124.guidance.conditions import both
from animate124.guidance.noise import per_row

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's
ALPHA_BAR = (1 - BETAS).cumprod(0)


def ddpm(t):
    return ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()


def epsilon(answer, z_t, alpha, sigma):
    return answer


def rectified_flow(s):
    return 1 - s, s


def velocity_of_flow(answer, z_t, alpha, sigma):
    """eps of v = eps - z."""
    return z_t + alpha * answer


@dataclass
class Row:
    """A row of the method's table."""

    t: tuple[float, float]  # the first and the last that are drawn
    start: str  # of classifier-free guidance, "cond" or "uncond"
    scale: Any  # a number, or a tensor that is spread over the latents
    weight: Callable[[Any], Any]  # w of alpha_bar
    latents: tuple[int, ...]  # shape, of two clips or of eight images
    frames: int | None = None  # of a clip, for the priors that take clips
    clean: int = 0  # latent frames that the network sees without noise
    path: Callable = ddpm  # alpha and sigma of t
    noise_of: Callable = epsilon  # eps of the network's answer, z_t, alpha, sigma
    seen_of: Callable = lambda z_t, sigma: z_t  # what the network has for z_t
    model: str = ""  # folder of random_priors
    config: dict = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Rendered frames that `latents` are of."""
        return 2 * (self.frames or 4)


class FixedPrompt:
    """A prompt processor's output with one embedding a view, so that a view can be read off."""

    def __init__(self, width=32):
        generator = torch.Generator().manual_seed(1)
        self.side, self.front, self.uncond = torch.randn(3, 77, width, generator=generator)

    def get_text_embeddings(
        self, elevation, azimuth, camera_distances, view_dependent_prompting=True
    ):
        front = (azimuth.abs() < 45) & view_dependent_prompting
        rows = [self.front if is_front else self.side for is_front in front]
        return torch.stack(rows + [self.uncond] * len(rows))


def cameras(n, frames=None, azimuth=None):
    azimuth = torch.linspace(-170, 170, n) if azimuth is None else torch.tensor(azimuth)
    batch = {
        "elevation": torch.linspace(-30, 30, n),
        "azimuth": azimuth,
        "camera_distances": torch.full((n,), 2.5),
        "height": 20,  # batches carry more than a prior reads
    }
    return batch | ({"num_frames": frames} if frames else {})


@dataclass
class Seen:
    """What one call of a prior did."""

    out: dict
    rgb_grad: torch.Tensor
    z: torch.Tensor  # latents
    z_grad: torch.Tensor
    z_t: torch.Tensor  # with noise
    t: torch.Tensor
    shown: tuple[
        torch.Tensor, torch.Tensor
    ]  # latents and time as the network has them, both halves
    answer: torch.Tensor  # the network's
    condition: dict
    network: dict  # the network's arguments


def watch(prior, rgb, prompt=None, **camera):
    """Calls a prior and notes what goes on inside."""
    seen = {}
    prepare, encode = prior.prepare, prior.to_latents
    guided, predict = prior.guided_noise, prior.predict_noise

    def noting_condition(*args):
        pictures, condition = prepare(*args)
        seen.update(condition=condition)
        return pictures, condition

    def noting_latents(pictures):
        z = encode(pictures)
        z.retain_grad()
        seen.update(z=z)
        return z

    def noting_noise(z_t, t, condition):
        seen.update(z_t=z_t, t=t)
        return guided(z_t, t, condition)

    def noting_answer(z_t, t, condition):
        answer = predict(z_t, t, condition)
        seen.update(shown=(z_t, t), answer=answer)
        return answer

    def hook(module, args, kwargs, output):
        seen.update(network=dict(zip(("sample", "t"), args, strict=False)) | kwargs)

    handle = prior.network.register_forward_hook(hook, with_kwargs=True)
    prior.prepare, prior.to_latents = noting_condition, noting_latents
    prior.guided_noise = noting_noise
    prior.predict_noise = noting_answer
    try:
        rgb = rgb.clone().requires_grad_(True)
        out = prior(rgb, prompt or FixedPrompt(), **camera)
        out["loss_sds"].backward()
    finally:
        handle.remove()
        del prior.prepare, prior.to_latents, prior.guided_noise, prior.predict_noise
    z = seen.pop("z")
    return Seen(out, rgb.grad, z.detach(), z.grad, **seen)


def check(prior, row: Row, prompt=None) -> Seen:
    """One call of the prior does what the row says."""
    assert [prior.noise.time_at(x) for x in (prior.low, prior.high)] == pytest.approx(row.t)
    rgb = torch.rand(row.n, 20, 32, 3)
    seen = watch(prior, rgb, prompt, **cameras(row.n, row.frames))
    z, z_t, t = seen.z, seen.z_t, seen.t
    assert z.shape == row.latents and t.shape == row.latents[:1]
    assert row.t[0] <= t.min() and t.max() <= row.t[1]
    # both halves see the same latents at the same time, noisy but for the clean frames
    latents, at = seen.shown
    alpha, sigma = (per_row(x, z) for x in row.path(t))
    for half, time in zip(latents[:, : z.shape[1]].chunk(2), at.chunk(2), strict=True):
        expected, model_time = row.seen_of(z_t, sigma).clone(), prior.noise.model_time(t)
        if row.clean:
            expected[:, :, : row.clean] = seen.condition["first"][: len(z)]
            model_time = model_time[:, None].repeat(1, z.shape[2])
            model_time[:, : row.clean] = 0
        torch.testing.assert_close(half, expected)
        torch.testing.assert_close(time, model_time)
    # z_t gives away the noise; the gradient follows
    eps = (z_t - alpha * z) / sigma
    assert abs(eps.mean()) < 0.2 and abs(eps.std() - 1) < 0.15
    eps_hat = row.noise_of(seen.answer, both(z_t), both(alpha), both(sigma))
    cond, uncond = eps_hat.chunk(2)
    start = {"cond": cond, "uncond": uncond}[row.start]
    alpha_bar = alpha**2 / (alpha**2 + sigma**2)
    expected = row.weight(alpha_bar) * (start + row.scale * (cond - uncond) - eps) / len(z)
    if row.clean:
        expected[:, :, : row.clean] = 0
    torch.testing.assert_close(seen.z_grad, expected, atol=2e-4, rtol=1e-3)
    loss = 0.5 * (len(z) * expected).square().sum() / len(z)
    torch.testing.assert_close(seen.out["loss_sds"].detach(), loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen.out["grad_norm"], (len(z) * expected).norm(), rtol=1e-3, atol=0)
    return seen
