"""Frame times of a clip: tau, one an image, in [0, 1]. The clip of a subject's motion that
the video prior sees has F of them, in increasing order and evenly spaced.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MODES = ("fps", "t0", None)


def played(frames: int, loop: bool = False) -> Float[Tensor, " {frames}"]:
    """tau of a video's frames: evenly from 0 to 1, or where it is played in a loop, whose end is
    its start, up to one step short of that."""
    return torch.arange(frames) / frames if loop else torch.linspace(0, 1, frames)


@dataclass
class FrameTimes:
    """Those of one clip, and whether its first frame is the reference image's moment (tau = 0)."""

    tau: Float[Tensor, " F"]
    starts_from_zero: bool


def check_frame_times(num_frames: int, mode: str | None, precision: int) -> None:
    """Raise a ValueError where `sample_frame_times` couldn't make a clip."""
    if mode not in MODES:
        raise ValueError(f"There are no frame times of mode {mode!r}: give 'fps', 't0' or null.")
    if num_frames < 1:
        raise ValueError(f"A clip needs at least 1 frame, and num_frames is {num_frames}.")
    if mode == "fps" and num_frames > precision:
        raise ValueError(
            f"{num_frames} frames of a clip don't fit into frame_precision = {precision} moments: "
            f"lower num_frames or raise frame_precision to at least {num_frames}."
        )


def sample_frame_times(
    num_frames: int,
    mode: str | None = "fps",
    *,
    precision: int = 256,
    zero_rate: float = 0.2,
    mirror_rate: float = 0.5,
    generator: torch.Generator | None = None,
) -> FrameTimes:
    """F frame times of one random clip.

    `fps`: time has P = `precision` moments 0, 1/P, ..; the clip takes every k-th, F k of them being
    its length, k uniform among those that fit. It starts at 0 with probability `zero_rate`, else
    anywhere that it fits; with probability `mirror_rate` they become 1 - tau (increasing
    again), and then it doesn't count as starting from zero.
    `t0`: stride 1/F from an offset that is 0 with probability `zero_rate`, else uniform in
    [0, 1/F].
    None: F times from 0 to 1, both included; always starts from zero.
    """
    check_frame_times(num_frames, mode, precision)
    device = None if generator is None else generator.device
    if mode is None:
        return FrameTimes(torch.linspace(0, 1, num_frames, device=device), True)

    frame = torch.arange(num_frames, device=device)
    zero, mirror, offset = torch.rand(3, generator=generator, device=device)
    if mode == "t0":
        from_zero = bool(zero < zero_rate)
        return FrameTimes((frame + (0 if from_zero else offset)) / num_frames, from_zero)

    stride = _randint(1, precision // num_frames, generator)
    start = _randint(0, precision - num_frames * stride, generator)
    if zero < zero_rate:
        start = 0
    tau = (start + stride * frame) / precision
    if mirror < mirror_rate:
        return FrameTimes((1 - tau).flip(0), False)
    return FrameTimes(tau, start == 0)  # a start drawn as 0 by chance is one too


def _randint(low: int, high: int, generator: torch.Generator | None) -> int:
    """Uniform integer in low..high, both included."""
    device = None if generator is None else generator.device
    return int(torch.randint(low, high + 1, (), generator=generator, device=device))
