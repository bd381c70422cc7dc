"""Motions: at rest when they should be, periodic, smooth, different, never out of the picture."""

import itertools
import math

import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.toyworld.characters import SPECIES, make_character
from animate124.toyworld.clay import sphere_directions
from animate124.toyworld.motions import MAX_AMPLITUDE, MOTIONS, animate, pose
from animate124.toyworld.ray_tracing import render
from animate124.toyworld.skeleton import JOINTS, Pose

MOVING = [motion for motion in MOTIONS if motion != "still"]
IN_PICTURE = 2.5 * math.sin(math.radians(20))  # a sphere of this radius touches the picture's edge


def film(motion: str, times: torch.Tensor, **style) -> torch.Tensor:
    """The canonical panda's alpha and colours [T 24 24 4] from the reference camera."""
    picture = render(
        animate(make_character("panda"), motion, times, **style), Cameras.of().batch(24, 24)
    )
    return torch.cat([picture["rgb"], picture["alpha"]], dim=-1)


@pytest.mark.parametrize("motion", MOTIONS)
def test_time_0_is_the_rest_pose_and_whole_cycles_loop(motion):
    body = make_character("cat", 4)
    ends = torch.tensor([0.0, 0.5, 1.0])
    scenes = animate(body, motion, ends, speed=2)
    expected = body.at_rest().frames.expand_as(scenes.frames)
    torch.testing.assert_close(scenes.frames, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("motion", MOTIONS)
def test_phase_and_speed_are_those_of_the_clock(motion):
    body, times = make_character("robot"), torch.linspace(0, 0.4, 5)
    for style, clock in (({"phase": 0.3}, times + 0.3), ({"speed": 0.5}, times / 2)):
        a, b = animate(body, motion, times, **style), animate(body, motion, clock)
        torch.testing.assert_close(a.frames, b.frames, rtol=0, atol=1e-5)


@pytest.mark.parametrize("motion", MOTIONS)
def test_amplitude_0_does_not_move_limbs(motion):
    still = pose(motion, torch.linspace(0, 1, 7), amplitude=0)
    assert not still.angles[:, 1:].any()
    assert not still.shift.any()
    assert not still.stretch.any()
    assert motion == "spin" or not still.angles.any()


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_move_known_joints_only(motion):
    assert set(MOTIONS[motion](torch.zeros(1))) <= {*JOINTS, "shift", "stretch", "turn"}


def test_still_does_not_move():
    frames = film("still", torch.linspace(0, 1, 4))
    assert torch.equal(frames, frames[:1].expand_as(frames))


@pytest.mark.parametrize("motion", MOVING)
def test_motions_are_seen(motion):
    frames = film(motion, torch.arange(4) / 4)
    assert (frames[1:] - frames[0])[..., :3].abs().mean(dim=(1, 2, 3)).max() > 0.01
    assert frames.std(dim=0).mean() > 0.005


def test_motions_are_told_apart():
    films = {motion: film(motion, torch.arange(8) / 8) for motion in MOTIONS}
    for one, other in itertools.combinations(films, 2):
        assert (films[one] - films[other]).abs().mean() > 0.007, (one, other)


@pytest.mark.parametrize("motion", MOVING)
def test_motions_are_smooth(motion):
    """No jumps, and no kinks: halving the step halves the change of the velocity."""
    body = make_character("fox")

    def kinks(n: int) -> float:
        frames = animate(body, motion, torch.arange(n + 2, dtype=torch.float64) / n).frames
        velocity = (frames[1:] - frames[:-1]) * n
        assert velocity.abs().max() < 8
        return (velocity[1:] - velocity[:-1]).abs().max().item()

    assert kinks(1024) < 0.65 * kinks(512)


@pytest.mark.parametrize("motion", ["dance", "walk", "jump", "nod"])
def test_half_a_cycle_later_is_the_mirror_image(motion):
    """For a sway or a step; a jump and a nod are symmetric at any time."""
    times, later = torch.arange(5) / 8, 0.5 if motion in ("dance", "walk") else 0
    one, other = film(motion, times), film(motion, times, phase=later).flip(2)
    assert (one - other)[..., 3].abs().mean() < 2e-3


def test_nobody_ever_leaves_the_picture():
    """All species, 22 individuals each, all motions, at the largest amplitude."""
    times, directions = torch.arange(16) / 16 + 0.01, sphere_directions(160)
    poses = [pose(motion, times, amplitude=MAX_AMPLITUDE) for motion in MOTIONS]
    everything = Pose(
        *(torch.cat([getattr(p, k) for p in poses]) for k in ("angles", "shift", "stretch"))
    )
    reaches = {
        (species, seed): make_character(species, seed).posed(everything).reach(directions).max()
        for species in SPECIES
        for seed in (None, *range(21))
    }
    worst = max(reaches, key=reaches.get)
    assert reaches[worst] < IN_PICTURE, worst


def test_bad_requests_say_what_would_do():
    with pytest.raises(KeyError, match=r"'dancing'\. Close names: dance"):
        pose("dancing", torch.zeros(1))
    with pytest.raises(ValueError, match=r"amplitude is 3; from 0 to 1.2"):
        pose("dance", torch.zeros(1), amplitude=3)
