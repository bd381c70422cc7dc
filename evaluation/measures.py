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
from .truth import RING, SIZE, TAU, Subject, front

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
    scene: Scene, cameras: Cameras, tau: Float[Tensor, " F"]
) -> tuple[Float[Tensor, "F S S 3"], Float[Tensor, "F S S 1"]]:
    """Ours, a picture a camera, each at its time, and its opacity."""
    render = scene.look(cameras, tau, SIZE, SIZE)
    colours, outlines = (render[name].clamp(0, 1).cpu() for name in ("comp_rgb", "opacity"))
    return colours, outlines


def pictures(scene: Scene, cameras: Cameras, tau: Float[Tensor, " F"]) -> Float[Tensor, "F S S 3"]:
    return colours_and_outlines(scene, cameras, tau)[0]


def stills(subject: Subject, scene: Scene) -> tuple[dict[str, float], Tensor]:
    """How well tau = 0 is hit; rows of a sheet: the true novel views and ours."""
    start, ring_start = torch.zeros(1), torch.zeros(len(RING))
    given, ring = subject.pictures(front(1), start), subject.pictures(RING, ring_start)
    ours = pictures(scene, RING, ring_start)
    figures = {
        "reference_psnr": psnr(pictures(scene, front(1), start), given),
        "novel_view_psnr": psnr(ours, ring),
    }
    return figures, torch.stack([ring, ours])


def moves(subject: Subject, scenes: list[Scene]) -> tuple[dict, Tensor]:
    """How well the scenes of stages 2 and 3 (or 2 alone) move; rows: the true clip and ours."""
    seen = [colours_and_outlines(scene, front(len(TAU)), TAU) for scene in scenes]
    clips, outlines = zip(*seen, strict=True)
    classifier = motion_classifier.load(CLASSIFIER)
    truth, poses = subject.pictures(front(len(TAU)), TAU), subject.poses()
    scores = classifier(small(clips[-1]))[0].softmax(dim=0)
    figures = {
        "named": motion_classifier.NAMES[int(scores.argmax())],
        "motion_score": float(scores[motion_classifier.NAMES.index(subject.motion)]),
        "motion_energy_ratio": motion_energy(clips[-1]) / max(motion_energy(truth), 1e-6),
        "motion_kept": motion_energy(outlines[-1]) / max(motion_energy(outlines[0]), 1e-6),
        "identity_drift": [identity_distance(clip, poses) for clip in clips],
        "temporal_jitter": jitter(clips[-1]) / max(jitter(truth), 1e-6),
    }
    return figures, torch.stack([truth[::2], *(clip[::2] for clip in clips)])
