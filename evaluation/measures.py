"""A trained scene's figures against the true character.

Pictures are compared at 64 x 64 pixels, colours in [0, 1] on white:

* reference_psnr: the given picture's camera, tau = 0; novel_view_psnr: 8 azimuths at 15 degrees of
  elevation, tau = 0 (dB, of the last stage run); novel_view_psnr_without_3d_prior: the same run
  with Zero123's weight at 0;
* named: what a classifier calls the clip seen from the reference camera (motion_classifier.py);
  motion_score: the share that it gives to the motion asked for;
* motion_energy_ratio: the clip's standard deviation over time (root mean square over pixels),
  divided by ground truth's;
* motion_kept: the same of the outline (opacity), stage 3's by stage 2's. Not of colours: stage 3
  brings back those that stage 2 lost, and what then changes less is no motion;
* identity, identity_worst: mean and worst cosine of its frames to the given picture, their floor,
  ceiling and share of the way between (likeness.py); 16 frame times from each of truth.py's VIEWS;
* sharpness: of those frames in motion (tau > 0), the root mean square of the coherent gradient
  inside the body, divided by ground truth's (sharpness.py);
* specks: of all those frames, the share of opacity that is away from the body (specks.py);
* identity_drift: of the clip's worst frame, the root mean square distance to the nearest of the
  character's true pictures in any motion; of stages 2 and 3;
* temporal_jitter: root mean square of the second difference over time, frames 1/16 apart,
  divided by ground truth's.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.cameras import Cameras
from ..system.trained import Scene
from ..toyworld.measures import psnr
from . import motion_classifier
from .likeness import likeness
from .sharpness import edge_strength
from .specks import specks
from .truth import RING, SIZE, TAU, Subject, around, front

CLASSIFIER = Path(__file__).resolve().parents[1] / "load" / "toy-priors" / "motion-classifier"


def motion_energy(clip: Float[Tensor, "F S S C"]) -> float:
    """Standard deviation over time, root mean square over pixels."""
    return float(clip.var(dim=0, correction=0).mean().sqrt())


def jitter(clip: Float[Tensor, "F S S 3"]) -> float:
    """Root mean square of the second difference over time."""
    return float((clip[2:] - 2 * clip[1:-1] + clip[:-2]).square().mean().sqrt())


def identity_distance(clip: Float[Tensor, "F S S 3"], poses: Float[Tensor, "P S S 3"]) -> float:
    """Of the worst frame, the root mean square distance to the nearest pose."""
    distance = torch.cdist(clip.flatten(1), poses.flatten(1)) / math.sqrt(clip[0].numel())
    return float(distance.amin(dim=1).max())


def small(clip: Float[Tensor, "F S S 3"]) -> Float[Tensor, "1 F 3 s s"]:
    """As the motion classifier takes it."""
    return F.interpolate(clip.permute(0, 3, 1, 2), motion_classifier.SIZE, mode="area")[None]


def colours_and_outlines(
    scene: Scene, cameras: Cameras, tau: Float[Tensor, " F"], size: int = SIZE
) -> tuple[Float[Tensor, "F S S 3"], Float[Tensor, "F S S 1"]]:
    """Ours, a picture a camera, each at its time, and its opacity."""
    render = scene.look(cameras, tau, size, size)
    colours, outlines = (render[name].clamp(0, 1).cpu() for name in ("comp_rgb", "opacity"))
    return colours, outlines


def pictures(
    scene: Scene, cameras: Cameras, tau: Float[Tensor, " F"], size: int = SIZE
) -> Float[Tensor, "F S S 3"]:
    return colours_and_outlines(scene, cameras, tau, size)[0]


def stills(subject: Subject, scene: Scene) -> dict[str, float]:
    """How well tau = 0 is hit."""
    start, ring_start = torch.zeros(1), torch.zeros(len(RING))
    given, ring = subject.pictures(front(1), start), subject.pictures(RING, ring_start)
    return {
        "reference_psnr": psnr(pictures(scene, front(1), start), given),
        "novel_view_psnr": psnr(pictures(scene, RING, ring_start), ring),
    }


def moves(subject: Subject, scenes: list[Scene]) -> dict:
    """How well the scenes of stages 2 and 3 (or 2 alone) move."""
    seen = [colours_and_outlines(scene, front(len(TAU)), TAU) for scene in scenes]
    clips, outlines = zip(*seen, strict=True)
    classifier = motion_classifier.load(CLASSIFIER)
    truth, poses = subject.pictures(front(len(TAU)), TAU), subject.poses()
    scores = classifier(small(clips[-1]))[0].softmax(dim=0)
    return {
        "named": motion_classifier.NAMES[int(scores.argmax())],
        "motion_score": float(scores[motion_classifier.NAMES.index(subject.motion)]),
        "motion_energy_ratio": motion_energy(clips[-1]) / max(motion_energy(truth), 1e-6),
        "motion_kept": motion_energy(outlines[-1]) / max(motion_energy(outlines[0]), 1e-6),
        "identity_drift": [identity_distance(clip, poses) for clip in clips],
        "temporal_jitter": jitter(clips[-1]) / max(jitter(truth), 1e-6),
    }


def looks(subject: Subject, scene: Scene) -> dict[str, float]:
    """What a person sees of a moving scene: whom, how sharp, and what floats around."""
    cameras, tau = around()
    ours, outlines = colours_and_outlines(scene, cameras, tau)
    truth, silhouettes = subject.colours_and_outlines(cameras, tau)
    moving = tau > 0
    sharp = edge_strength(ours[moving], outlines[moving])
    return {
        **likeness(subject, ours, truth),
        "sharpness": sharp / edge_strength(truth[moving], silhouettes[moving]),
        "specks": specks(outlines),
    }
