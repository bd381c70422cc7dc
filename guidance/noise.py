"""How a prior's data were noised, and what its network's answer says about the noise.

All of them make z_t = alpha z + sigma eps of latents z and unit noise eps; they differ in
(alpha, sigma) along the way from data to noise, in what stands for t, and in what the network
predicts. `fraction` is the place on that way, 0 at the data, 1 at the noise; t [B] is a Noise's
own variable: a timestep 0..T-1 (DDPM), s in [0, 1] (RectifiedFlow) or sigma (EDM).

Torch alone. Shapes: z, z_t, eps and predictions [B ...], t and scales [B].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

Time = Float[Tensor, " B"]


class Noise(Protocol):
    """What score distillation asks of a way of noising."""

    def time_at(self, fraction: float) -> float:
        """t at a fraction of the way; the continuous ones also take fractions [B]."""
        ...

    def nearer(self, t: Tensor, share: float) -> Tensor:
        """The time at `share` (0 to 1) of the way from the data to t."""
        ...

    def draw(
        self,
        n: int,
        low: float,
        high: float,
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n times at fractions that are uniform from low to high: [n]."""
        ...

    def scales(self, t: Tensor) -> tuple[Time, Time]:
        """alpha and sigma [B] of z_t = alpha z + sigma eps."""
        ...

    def noise_of(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """eps_hat [B ...] that the network's prediction means."""
        ...

    def model_time(self, t: Tensor) -> Tensor:
        """What the network is given for t."""
        ...

    def model_input(self, z_t: Tensor, t: Tensor) -> Tensor:
        """What the network is given for z_t."""
        ...


def per_row(x: Float[Tensor, " B"], like: Float[Tensor, " B *rest"]) -> Float[Tensor, " B *ones"]:
    """x with trailing dimensions of 1, to multiply each row of `like`."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def check_fractions(low: float, high: float) -> None:
    """A ValueError unless 0 <= low <= high <= 1."""
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"Diffusion timesteps from {low} to {high} of the whole range: "
            "0 <= min_step_percent <= max_step_percent <= 1 is needed, for instance 0.02 and 0.98."
        )


def uniform(n: int, low: float, high: float, device, generator) -> Float[Tensor, " {n}"]:
    """n fractions, uniform from low to high."""
    check_fractions(low, high)
    return low + (high - low) * torch.rand(n, device=device, generator=generator)


def add_noise(
    z: Float[Tensor, " B *shape"], eps: Float[Tensor, " B *shape"], alpha: Time, sigma: Time
) -> Float[Tensor, " B *shape"]:
    """z_t = alpha z + sigma eps."""
    return per_row(alpha, z) * z + per_row(sigma, z) * eps


def alpha_bar_of(alpha: Time, sigma: Time) -> Time:
    """alpha^2 / (alpha^2 + sigma^2): the share of the signal in z_t's variance.

    It is DDPM's alpha_bar for the same ratio of signal to noise, whatever the scale of z_t, so that
    weights that are formulas in it mean the same for every way of noising.
    """
    return alpha.square() / (alpha.square() + sigma.square())


@dataclass(frozen=True)
class DDPM:
    """alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) (Ho et al. 2020, eq. 4); t: a timestep.

    The network predicts eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z (Salimans and Ho
    2022, appendix D).
    """

    alphas_cumprod: Float[Tensor, " T"]
    prediction_type: str = "epsilon"  # or v_prediction

    def __post_init__(self):
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"A DDPM model that predicts {self.prediction_type!r} came; epsilon or "
                "v_prediction will do."
            )

    @cached_property
    def last(self) -> int:
        """The last timestep that keeps something of the data."""
        return int(self.alphas_cumprod.count_nonzero()) - 1

    def time_at(self, fraction: float) -> int:
        """A ValueError where nothing is left of the data (zero terminal SNR, Lin et al. 2024)."""
        n = len(self.alphas_cumprod)
        t = min(round(fraction * n), n - 1)
        if t > self.last:
            raise ValueError(
                f"At timestep {t} of {n} this model's input is noise alone, which says nothing "
                f"about what was rendered: take max_step_percent={self.last / n:.3g} or less, for "
                "instance 0.98."
            )
        return t

    def nearer(self, t: Tensor, share: float) -> Tensor:
        return (t * share).round().long()

    def draw(self, n, low, high, *, device, generator=None):
        """Timesteps from low to high, both included."""
        check_fractions(low, high)
        first, last = self.time_at(low), self.time_at(high)
        return torch.randint(first, last + 1, (n,), device=device, generator=generator)

    def scales(self, t: Tensor) -> tuple[Time, Time]:
        alpha_bar = self.alphas_cumprod[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def noise_of(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return prediction
        alpha, sigma = self.scales(t)
        return per_row(alpha, z_t) * prediction + per_row(sigma, z_t) * z_t

    def model_time(self, t: Tensor) -> Tensor:
        return t

    def model_input(self, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - s, sigma = s (Liu et al. 2022; Lipman et al. 2022); the network predicts
    v = eps - z. Fractions go through the scheduler's shift (Esser et al. 2024, eq. 23)."""

    shift: float = 1.0  # > 1: more of the way lies near the noise
    num_timesteps: int = 1000  # what the network is given for s is s times this

    def time_at(self, fraction):
        return self.shift * fraction / (1 + (self.shift - 1) * fraction)

    def nearer(self, t: Tensor, share: float) -> Tensor:
        return self.time_at(share * t / (self.shift - (self.shift - 1) * t))

    def draw(self, n, low, high, *, device, generator=None):
        if low == 1:
            raise ValueError(
                "With min_step_percent=1 this model's input is noise alone, which says nothing "
                "about what was rendered: take less, for instance 0.98."
            )
        return self.time_at(uniform(n, low, high, device, generator))

    def scales(self, t: Tensor) -> tuple[Time, Time]:
        return 1 - t, t

    def noise_of(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """z_t + (1 - s) v = (1 - s) z + s eps + (1 - s)(eps - z) = eps."""
        return z_t + per_row(1 - t, z_t) * prediction

    def model_time(self, t: Tensor) -> Tensor:
        return t * self.num_timesteps

    def model_input(self, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t


@dataclass(frozen=True)
class EDM:
    """alpha = 1, t = sigma (Karras et al. 2022), as Stable Video Diffusion has it: the network sees
    c_in z_t and answers F, z = c_skip z_t + c_out F, with sigma_data = 1 and a negative c_out."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0  # sigma^(1/rho) is linear in the fraction (their eq. 5)

    def time_at(self, fraction):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + fraction * (high - low)) ** self.rho

    def nearer(self, t: Tensor, share: float) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.time_at(share * (t ** (1 / self.rho) - low) / (high - low))

    def draw(self, n, low, high, *, device, generator=None):
        return self.time_at(uniform(n, low, high, device, generator))

    def scales(self, t: Tensor) -> tuple[Time, Time]:
        return torch.ones_like(t), t

    def noise_of(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """(z_t - z_hat) / sigma, c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1)."""
        sigma = per_row(t, z_t)
        total = sigma.square() + 1
        return (z_t * sigma / total) + prediction / total.sqrt()

    def model_time(self, t: Tensor) -> Tensor:
        return t.log() / 4

    def model_input(self, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t / per_row((t.square() + 1).sqrt(), z_t)
