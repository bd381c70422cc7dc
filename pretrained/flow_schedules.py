"""Schedules of rectified flow: what the scheduler's folder of a model says about the noise that the
model was trained with. Samplers differ in how they step, and agree in that."""

import math
from dataclasses import dataclass
from typing import Any

from ..files.json_files import read_json
from .models import model_folder


@dataclass(frozen=True)
class FlowSchedule:
    """sigma = shift s / (1 + (shift - 1) s) of a fraction s (Esser et al. 2024, eq. 23)."""

    shift: float
    num_timesteps: int = 1000  # what the network is given for sigma is sigma times this
    # of a shift that grows with the latents: exp of mu, which is linear in the number of tokens
    mu_at: tuple[tuple[int, float], tuple[int, float]] | None = None  # two (tokens, mu)

    def __post_init__(self) -> None:
        if not (0 < self.shift < math.inf and self.num_timesteps > 0):
            raise ValueError(f"a shift of {self.shift} over {self.num_timesteps} timesteps")
        if self.mu_at is not None and not self.mu_at[0][0] < self.mu_at[1][0]:
            raise ValueError(f"a shift that grows from {self.mu_at[0]} to {self.mu_at[1]}")

    @property
    def few(self) -> int:
        """The fewer of the two numbers of tokens."""
        return 1 if self.mu_at is None else self.mu_at[0][0]

    def shift_of(self, tokens: int) -> float:
        """The shift for latents of so many tokens."""
        if self.mu_at is None:
            return self.shift
        (few, low), (many, high) = self.mu_at
        return math.exp(low + (high - low) * (tokens - few) / (many - few))


def flow_schedule(model: str, subfolder: str = "scheduler") -> FlowSchedule:
    """What a model's folder or hub id states.

    Raises:
        FileNotFoundError: no such file; ValueError: the model is none of rectified flow.
    """
    path = model_folder(model, subfolder) / subfolder / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Was the download cut off?")
    config = read_json(path)
    name = str(config.get("_class_name"))
    matching = name.startswith("FlowMatch")
    if not matching and not config.get("use_flow_sigmas"):
        raise ValueError(
            f"{path} is of no model of rectified flow (its class is {name}): Wan, SkyReels V2 and "
            "LTX-Video will do here, ModelScope and ZeroScope for animate124-zeroscope-guidance."
        )
    try:
        return schedule_of(config, "shift" if matching else "flow_shift")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error!r}. Download it again.") from error


def schedule_of(config: dict[str, Any], shift: str) -> FlowSchedule:
    """Of a scheduler's config; shift: the key that it has the constant one under."""
    lengths = None
    if config.get("use_dynamic_shifting"):  # with diffusers' defaults
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        lengths = (int(few), float(low)), (int(many), float(high))
    steps = int(config.get("num_train_timesteps", 1000))
    return FlowSchedule(float(config.get(shift, 1.0)), steps, lengths)
