"""Banks of ground truth to train on: pictures, views and clips of random characters.

Everything follows from a seed. Characters with seeds below `HELD_OUT` are for training; tests and
evaluations take theirs from above. Pictures are uint8 on white, channels first. Training cameras
cover the stages' whole range: elevation -50..50 degrees, any azimuth, distance 2.5, fov 40.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data.cameras import Cameras
from ..data.frame_times import sample_frame_times
from .captions import caption
from .characters import SPECIES, make_character
from .motions import MOTIONS, animate
from .ray_tracing import Ellipsoids, concatenate, render

HELD_OUT = 10_000  # characters' seeds from here on never occur in training
WHOLE_CLIPS = 0.75  # share of the clips that play a motion once, from rest
ELEVATION_RANGE = (-50.0, 50.0)  # degrees; a drifting camera leaves the stages' +-45 a little


@dataclasses.dataclass
class Bank:
    """N pictures with their captions and cameras."""

    images: UInt8[Tensor, "N *F 3 S S"]
    captions: list[str]  # N
    elevation_deg: Float[Tensor, " N"]  # of the first frame
    azimuth_deg: Float[Tensor, " N"]


@dataclasses.dataclass
class ViewBank:
    """C scenes: the reference view of each, and V others."""

    reference: UInt8[Tensor, "C 3 S S"]  # from elevation 0, azimuth 0
    views: UInt8[Tensor, "C V 3 S S"]
    elevation_deg: Float[Tensor, "C V"]
    azimuth_deg: Float[Tensor, "C V"]


def draw(
    scenes: Iterable[Ellipsoids], cameras: Cameras, size: int, device: torch.device | str
) -> UInt8[Tensor, "N 3 S S"]:
    """Pictures of N scenes by N cameras, in portions that a device holds easily."""
    together = concatenate(list(scenes)).to(device)
    cameras = cameras.to(device)
    chunk = 1 << (15 if torch.device(device).type == "cpu" else 22)
    images = []
    for start in range(0, len(cameras), 2048):
        part = slice(start, start + 2048)
        camera = lens(cameras.map(lambda v, part=part: v[part]), size)
        rgb = render(together[part], camera, supersample=2, chunk=chunk)["rgb"]
        images.append((255 * rgb.clamp(0, 1)).round().to(torch.uint8).permute(0, 3, 1, 2))
    return torch.cat(images)


def lens(cameras: Cameras, size: int) -> dict:
    """What `render` reads of a camera batch, without its rays."""
    return {"c2w": cameras.c2w, "fovy": cameras.fovy, "height": size, "width": size}


def random_angles(n: int, dice: random.Random) -> tuple[Tensor, Tensor]:
    """Elevations and azimuths [n] in degrees."""
    elevation = [dice.uniform(*ELEVATION_RANGE) for _ in range(n)]
    return torch.tensor(elevation), torch.tensor([dice.uniform(-180, 180) for _ in range(n)])


def random_motion(dice: random.Random, whole_rate: float = 0.5) -> dict[str, float]:
    """How a motion is performed; a share of them once as a whole, from rest at tau = 0."""
    if dice.random() < whole_rate:
        return {"phase": 0.0, "speed": 1.0, "amplitude": dice.uniform(0.85, 1.15)}
    return {
        "phase": dice.random(),
        "speed": dice.choice((1.0, 1.0, 2.0)),
        "amplitude": dice.uniform(0.8, 1.2),
    }


def image_bank(
    n_characters: int, images_each: int, *, size: int, seed: int, device: torch.device | str
) -> Bank:
    """Captioned pictures: of each character a third at rest, the others in one of its motions."""
    dice = random.Random(f"images {seed}")
    moving = [motion for motion in MOTIONS if motion != "still"]
    scenes, captions, angles = [], [], []
    for _ in range(n_characters):
        species = dice.choice(list(SPECIES))
        character = make_character(species, dice.randrange(HELD_OUT))
        motion = dice.choice(moving) if dice.random() < 0.67 else None
        tau = torch.tensor([dice.random() for _ in range(images_each)])
        scenes.append(animate(character, motion or "still", tau, **random_motion(dice)))
        elevation, azimuth = random_angles(images_each, dice)
        angles.append(torch.stack([elevation, azimuth]))
        captions += [
            caption(species, motion, float(e), float(a), dice)
            for e, a in zip(elevation, azimuth, strict=True)
        ]
    elevation, azimuth = torch.cat(angles, dim=1)
    cameras = Cameras.of(elevation, azimuth)
    return Bank(draw(scenes, cameras, size, device), captions, elevation, azimuth)


def view_bank(
    seeds: Iterable[int], views_each: int, *, size: int, seed: int, device: torch.device | str
) -> ViewBank:
    """Reference and other views of one scene a seed; three in four are at rest, as tau = 0 is."""
    dice = random.Random(f"views {seed}")
    scenes, angles = [], []
    for character_seed in seeds:
        character = make_character(dice.choice(list(SPECIES)), character_seed)
        motion = "still" if dice.random() < 0.75 else dice.choice(list(MOTIONS))
        scene = animate(character, motion, torch.tensor([dice.random()]))
        scenes.append(scene[torch.zeros(1 + views_each, dtype=torch.long)])
        elevation, azimuth = random_angles(views_each, dice)
        front = torch.zeros(1)
        angles.append(torch.stack([torch.cat([front, elevation]), torch.cat([front, azimuth])]))
    elevation, azimuth = torch.stack(angles, dim=1)  # [C 1+V]
    cameras = Cameras.of(elevation.flatten(), azimuth.flatten())
    images = draw(scenes, cameras, size, device).unflatten(0, elevation.shape)
    return ViewBank(
        images[:, 0], images[:, 1:], elevation[:, 1:].to(device), azimuth[:, 1:].to(device)
    )


def clip_bank(
    n_clips: int,
    num_frames: int,
    *,
    size: int,
    seed: int,
    device: torch.device | str,
    characters: range = range(HELD_OUT),
    whole_rate: float = WHOLE_CLIPS,
) -> Bank:
    """Captioned clips [N F 3 S S] with drifting cameras, of characters with these seeds.

    Three in four play a whole motion (frame times `t0`), as the toy stages see it: so the frames'
    order tells the phase, and a scene that is distilled from few clips gets one motion instead of
    the mean of many phases. The others have any frame rate, phase and speed (`fps`).
    """
    dice = random.Random(f"clips {seed}")
    generator = torch.Generator().manual_seed(seed)
    scenes, captions, cameras = [], [], []
    for _ in range(n_clips):
        species, motion = dice.choice(list(SPECIES)), dice.choice(list(MOTIONS))
        character = make_character(species, dice.randrange(characters.start, characters.stop))
        whole = dice.random() < whole_rate
        mode = "t0" if whole else "fps"
        tau = sample_frame_times(num_frames, mode, generator=generator).tau
        performed = random_motion(dice, whole_rate=float(whole))
        scenes.append(animate(character, motion, tau, **performed))
        elevation, azimuth = random_angles(1, dice)
        cameras.append(Cameras.of(elevation, azimuth).drift(num_frames, generator=generator))
        captions.append(caption(species, motion, float(elevation), float(azimuth), dice))
    joined = Cameras.of(
        torch.cat([camera.elevation_deg for camera in cameras]),
        torch.cat([camera.azimuth_deg for camera in cameras]),
    )
    images = draw(scenes, joined, size, device).unflatten(0, (n_clips, num_frames))
    first = slice(None, None, num_frames)
    return Bank(images, captions, joined.elevation_deg[first], joined.azimuth_deg[first])
