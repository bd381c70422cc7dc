"""Camera paths of the test videos: T azimuths in degrees, each with its tau in [0, 1]."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def smoothstep(x: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """0 up to x = 0, 1 from x = 1, between them a cubic that starts and ends without a jerk."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def motion_smooth(
    num_frames: int, num_frames_factor: int = 4, rounds: int = 4, hold: float = 0.5
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """A path that shows the motion from several sides; T = rounds * num_frames * num_frames_factor.

    Every round plays tau 0..1 once. The camera stands still for the first `hold` of a round
    and turns by 360 / rounds degrees in the rest, so that the next round starts where it arrives.
    """
    per_round = num_frames * num_frames_factor
    holding = min(int(hold * per_round), per_round - 1)
    frame = torch.arange(per_round)
    turned = smoothstep((frame - holding) / (per_round - holding))  # in turns of this round
    azimuth = (torch.arange(rounds)[:, None] + turned) * 360 / rounds
    return azimuth.flatten(), torch.linspace(0, 1, per_round).repeat(rounds)


def circle(n_views: int) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """One even turn around the subject while time runs once from 0 to 1; the last view stops one
    step short of the first."""
    return torch.arange(n_views) * 360 / n_views, torch.linspace(0, 1, n_views)


# by the name in `data.single_view.test_traj`, from the options that they need
TRAJECTORIES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "motion_smooth": lambda o: motion_smooth(o.num_frames, o.num_frames_factor),
    "circle": lambda o: circle(o.n_test_views),
}
