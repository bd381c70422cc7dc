"""Characters: who they are, that they fit their space, and how the skeleton carries them."""

import itertools
import random

import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.toyworld.characters import SPECIES, make_character
from animate124.toyworld.clay import REST_REACH, sphere_directions
from animate124.toyworld.ray_tracing import concatenate, render
from animate124.toyworld.skeleton import JOINTS, Pose, joint_transforms, rotations

TENSORS = ("frames", "colours", "joints", "pivots")
SEEDS = (None, 0, 1, 2)


def rest_pose(n: int = 1) -> Pose:
    return Pose(torch.zeros(n, len(JOINTS), 3), torch.zeros(n, 3), torch.zeros(n))


@pytest.mark.parametrize("species", SPECIES)
def test_a_seed_is_an_individual(species):
    global_states = random.getstate(), torch.get_rng_state()
    looks = [make_character(species, seed) for seed in SEEDS]
    for look, seed in zip(looks, SEEDS, strict=True):
        again = make_character(species, seed)
        assert all(torch.equal(getattr(look, k), getattr(again, k)) for k in TENSORS)
    for one, other in itertools.combinations(looks, 2):
        assert (one.frames - other.frames).abs().max() > 0.01
        assert (one.colours - other.colours).abs().max() > 0.01
    assert random.getstate() == global_states[0]
    assert torch.equal(torch.get_rng_state(), global_states[1])


@pytest.mark.parametrize("species", SPECIES)
def test_a_character_fills_its_space_and_no_more(species):
    for seed in (None, *range(21)):
        body = make_character(species, seed).at_rest()
        reach = body.reach(sphere_directions(500)).max().item()
        assert reach == pytest.approx(REST_REACH, rel=0.01)
        assert ((body.colours >= 0) & (body.colours <= 1)).all()
        assert (torch.linalg.det(body.frames[..., :3, :3]) > 1e-8).all()


@pytest.mark.parametrize("species", SPECIES)
def test_left_is_plus_y_and_the_outline_is_symmetric(species):
    for seed in SEEDS:
        character = make_character(species, seed)
        for name, joint, frame in zip(
            character.parts, character.joints, character.frames, strict=True
        ):
            for side, sign in (("left", 1), ("right", -1)):
                if name.startswith(side):
                    assert sign * frame[1, 3] > 0, name
                if JOINTS[joint].startswith(side):
                    assert name.startswith(side), name
        alpha = render(character.at_rest(), Cameras.of(10, 0).batch(24, 24))["alpha"]
        torch.testing.assert_close(alpha, alpha.flip(2), rtol=0, atol=0.12)  # a ray of 9 may differ
        assert (alpha - alpha.flip(2)).abs().mean() < 2e-3


@pytest.mark.parametrize("species", SPECIES)
def test_the_camera_of_azimuth_0_sees_the_face(species):
    character = make_character(species)
    painted = torch.zeros_like(character.colours)
    eyes = [name in ("left eye", "right eye") for name in character.parts]
    assert sum(eyes) == 2
    painted[eyes] = 1
    scene = character.at_rest()
    scene = type(scene)(scene.frames, painted[None])
    rgb = render(scene, Cameras.of(0, [0, 180]).batch(64, 64), supersample=2)
    light = (rgb["rgb"] - (1 - rgb["alpha"])).sum(-1)  # of the eyes alone
    columns = light[0].sum(0)
    assert columns[:32].sum() > 1  # one on either side
    assert columns[32:].sum() > 1
    assert light[1].sum() == 0


def test_species_look_different_from_the_front():
    bodies = concatenate([make_character(species).at_rest() for species in SPECIES])
    rgb = render(bodies, Cameras.of().batch(32, 32), supersample=2)["rgb"]
    for one, other in itertools.combinations(rgb, 2):
        assert (one - other).abs().mean() > 0.02


def test_an_unknown_species_names_its_neighbours():
    with pytest.raises(KeyError, match=r"'pandas'\. Close names: panda"):
        make_character("pandas")


def test_rotations_are_products_of_exponentials():
    angles = 3 * torch.randn(5, 3, dtype=torch.float64)
    axes = torch.linalg.cross(
        torch.eye(3, dtype=torch.float64)[:, None], torch.eye(3, dtype=torch.float64)[None], dim=-1
    ).mT  # [3 3 3]: axes[i] v = e_i x v
    roll, pitch, yaw = (
        torch.linalg.matrix_exp(angles[:, i, None, None] * axes[i]) for i in range(3)
    )
    torch.testing.assert_close(rotations(angles), yaw @ pitch @ roll)


def test_the_rest_pose_moves_nothing():
    character = make_character("rabbit", 5)
    transforms = joint_transforms(character.pivots, rest_pose())
    torch.testing.assert_close(transforms, torch.eye(4).expand_as(transforms))
    torch.testing.assert_close(character.posed(rest_pose()).frames, character.at_rest().frames)


@pytest.mark.parametrize("joint", range(len(JOINTS)))
def test_a_joint_carries_its_descendants_around_its_pivot(joint):
    pivots = make_character("bear", 2).pivots
    pose = rest_pose()
    pose.angles[0, joint] = torch.tensor([0.3, -0.5, 0.7])
    transforms = joint_transforms(pivots, pose)[0]
    children = {"root": JOINTS, "torso": JOINTS[1:5] + JOINTS[7:]}
    children["head"] = ("head", "left_ear", "right_ear")
    moved = children.get(JOINTS[joint], JOINTS[joint])
    for other, name in enumerate(JOINTS):
        still = torch.equal(transforms[other], torch.eye(4))
        assert still != (name in moved)
    kept = transforms[joint] @ torch.cat([pivots[joint], torch.ones(1)])
    torch.testing.assert_close(kept[:3], pivots[joint])


def test_squashing_keeps_volume_and_ground():
    character = make_character("duck")
    squashed = Pose(rest_pose().angles, torch.zeros(1, 3), torch.tensor([-0.3]))
    before, after = character.at_rest(), character.posed(squashed)
    torch.testing.assert_close(
        torch.linalg.det(after.frames), torch.linalg.det(before.frames), rtol=1e-4, atol=0
    )
    up_down = torch.tensor([[0.0, 0, 1], [0, 0, -1]])
    (top, bottom), (low_top, low_bottom) = before.reach(up_down)[0], after.reach(up_down)[0]
    torch.testing.assert_close(low_bottom, bottom, rtol=0, atol=0.02)
    assert low_top < top - 0.2
