"""Motions: what the joints of any character do at a time tau in [0, 1].

A motion runs on its own clock u = phase + speed * tau, in cycles, and repeats with period 1: with a
whole `speed` it loops. At u = 0 every motion is in the rest pose, so with `phase` 0 the scene at
tau = 0 is the character at rest. `amplitude` scales all angles and lengths; only a spin turns all
the way round whatever it is. Roll is about x (lifts the left arm sideways), pitch about y (bows
forward), yaw about z (turns to the left), in degrees.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .ray_tracing import Ellipsoids
from .skeleton import JOINTS, Character, Pose

MAX_AMPLITUDE = 1.2  # up to here a character stays inside the picture of the reference camera

Clock = Float[Tensor, " B"]
# joint, or "shift" of the root -> (roll, pitch, yaw) in degrees or (x, y, z); "turn" -> degrees of
# the root's yaw beside the amplitude; "stretch" -> log of the height's factor
Moves = dict[str, tuple | Tensor]


def _sin(u: Clock, cycles: int = 1) -> Clock:
    return torch.sin(2 * math.pi * cycles * u)


def _swell(u: Clock, start: float = 0.0, end: float = 1.0) -> Clock:
    """A smooth bump: 0 outside (start, end) of each cycle, 1 in its middle."""
    x = ((u % 1) - start) / (end - start)
    return torch.sin(math.pi * x.clamp(0, 1)) ** 2


def _plateau(u: Clock, ramp: float) -> Clock:
    """Rises smoothly from 0 to 1 within `ramp`, stays, and falls within the cycle's last `ramp`."""
    u = u % 1
    x = (torch.minimum(u, 1 - u) / ramp).clamp(0, 1)
    return x * x * (3 - 2 * x)


def _pair(name: str, left: tuple, right: tuple | None = None) -> Moves:
    """Both sides of a limb; `right` is given as the left side's mirror image would be."""
    roll, pitch, yaw = left if right is None else right
    return {f"left_{name}": left, f"right_{name}": (-roll, pitch, -yaw)}


def _still(u: Clock) -> Moves:
    return {}


def _dance(u: Clock) -> Moves:
    """Sways from side to side, the free arm flung up, hips, ears and tail against the beat."""
    sway, beat = _sin(u), _swell(2 * u)
    to_left, to_right = _swell(u, 0, 0.5), _swell(u, 0.5, 1)
    return {
        "root": (0, 0, 24 * sway),
        "torso": (-13 * sway, 0, 8 * sway),
        "head": (19 * sway, 0, -10 * sway),
        **_pair("arm", (76 * to_right + 20 * to_left, -35 * to_left, -20 * to_right),
                (76 * to_left + 20 * to_right, -35 * to_right, -20 * to_left)),
        **_pair("leg", (18 * to_right, -26 * to_right, 0), (18 * to_left, -26 * to_left, 0)),
        **_pair("ear", (10 * sway, 0, 0), (-10 * sway, 0, 0)),
        "tail": (0, 0, -30 * sway),
        "shift": (0, 0.05 * sway, 0.02 * beat),
        "stretch": 0.04 * beat,
    }  # fmt: skip


def _jump(u: Clock) -> Moves:
    """Crouches, leaps with the arms thrown up, lands softly."""
    crouch, flight = _swell(u, 0, 0.34) + _swell(u, 0.68, 1), _swell(u, 0.2, 0.82)
    return {
        "torso": (0, 14 * crouch, 0),
        "head": (0, -10 * crouch - 12 * flight, 0),
        **_pair("arm", (80 * flight, 40 * crouch, -12 * flight)),
        **_pair("leg", (22 * flight, 0, 0)),
        **_pair("ear", (0, 14 * crouch - 14 * flight, 0)),
        "tail": (0, -20 * flight, 0),
        "shift": (0, 0, 0.1 * flight),
        "stretch": -0.22 * crouch,
    }


def _wave(u: Clock) -> Moves:
    """Lifts the left arm and waves it three times, the head leaning along."""
    up = _plateau(u, 0.22)
    swing = up * _sin(u, 3)
    return {
        "torso": (3 * up, 0, 4 * swing),
        "head": (-9 * up, 0, 6 * up),
        "left_arm": (82 * up + 26 * swing, 0, -28 * up),
        "right_arm": (-6 * up, 0, 0),
        "tail": (0, 0, 18 * swing),
    }


def _spin(u: Clock) -> Moves:
    """Turns once about itself, the arms lifted by it."""
    lifted = _swell(u)
    return {
        **_pair("arm", (42 * lifted, 0, 0)),
        **_pair("ear", (10 * lifted, 0, 0)),
        "tail": (0, 12 * lifted, 0),
        "shift": (0, 0, 0.02 * lifted),
        "turn": 360 * (u % 1),
    }


def _nod(u: Clock) -> Moves:
    """Bows the head, then lifts it."""
    nod = _sin(u)
    return {
        "torso": (0, 4 * nod, 0),
        "head": (0, 22 * nod, 0),
        **_pair("ear", (0, -10 * nod, 0)),
        **_pair("arm", (0, -6 * nod, 0)),
    }


def _walk(u: Clock) -> Moves:
    """Two steps on the spot, arms against legs."""
    step, bob = _sin(u), _swell(2 * u)
    return {
        "root": (6 * step, 0, 0),
        "torso": (0, 0, 9 * step),
        "head": (0, 0, -7 * step),
        **_pair("arm", (0, 42 * step, 0), (0, -42 * step, 0)),
        **_pair("leg", (0, -36 * step, 0), (0, 36 * step, 0)),
        **_pair("ear", (0, 8 * bob, 0)),
        "tail": (0, 0, 16 * step),
        "shift": (0, 0, 0.025 * bob),
    }


MOTIONS: dict[str, Callable[[Clock], Moves]] = {
    "dance": _dance,
    "jump": _jump,
    "wave": _wave,
    "spin": _spin,
    "nod": _nod,
    "walk": _walk,
    "still": _still,
}


def pose(
    motion: str,
    tau: Float[Tensor, " B"],
    *,
    phase: float = 0.0,
    speed: float = 1.0,
    amplitude: float = 1.0,
) -> Pose:
    """The joints at frame times tau: phase in cycles, speed in cycles per unit of tau."""
    if motion not in MOTIONS:
        near = difflib.get_close_matches(motion, MOTIONS) or list(MOTIONS)
        raise KeyError(f"No motion is called {motion!r}. Close names: {', '.join(near)}.")
    if not 0 <= amplitude <= MAX_AMPLITUDE:
        raise ValueError(
            f"amplitude is {amplitude}; from 0 to {MAX_AMPLITUDE} a character stays in the picture."
        )
    moves = MOTIONS[motion](phase + speed * tau)

    def column(values: Any) -> Float[Tensor, "B 3"]:
        return torch.stack([torch.as_tensor(v).to(tau).expand_as(tau) for v in values], dim=-1)

    rest = (0, 0, 0)
    angles = torch.stack([column(moves.get(joint, rest)) for joint in JOINTS], dim=1) * amplitude
    angles[:, 0, 2] += torch.as_tensor(moves.get("turn", 0)).to(tau)
    return Pose(
        torch.deg2rad(angles),
        amplitude * column(moves.get("shift", rest)),
        amplitude * column((moves.get("stretch", 0),) * 3)[:, 0],
    )


def animate(
    character: Character,
    motion: str,
    tau: Float[Tensor, " B"],
    *,
    phase: float = 0.0,
    speed: float = 1.0,
    amplitude: float = 1.0,
) -> Ellipsoids:
    """A character in motion at frame times tau: one scene a time."""
    tau = tau.to(character.frames)
    return character.posed(pose(motion, tau, phase=phase, speed=speed, amplitude=amplitude))
