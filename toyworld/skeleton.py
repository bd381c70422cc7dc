"""The skeleton that every character shares, and the poses it takes.

Characters stand upright on the z axis and face +x, where the camera of azimuth 0 is; their left is
+y. Angles are (roll, pitch, yaw) about x, y, z, applied in this order, in radians.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .ray_tracing import Ellipsoids

JOINTS = (
    "root",
    "torso",
    "head",
    "left_arm",
    "right_arm",
    "left_leg",
    "right_leg",
    "left_ear",
    "right_ear",
    "tail",
)
PARENTS = (-1, 0, 1, 1, 1, 0, 0, 2, 2, 1)  # a parent stands before its children


@dataclasses.dataclass(frozen=True)
class Pose:
    """What the skeleton does in B moments; all zeros is the rest pose."""

    angles: Float[Tensor, "B J 3"]  # of every joint about its pivot, radians
    shift: Float[Tensor, "B 3"]  # of the root
    stretch: Float[Tensor, " B"]  # log of the height's factor; the volume stays


def rotations(angles: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def affine(
    linear: Float[Tensor, "*B 3 3"], translation: Float[Tensor, "*B 3"]
) -> Float[Tensor, "*B 4 4"]:
    """The map x -> linear x + translation."""
    matrix = linear.new_zeros(*linear.shape[:-2], 4, 4)
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = linear, translation, 1
    return matrix


def joint_transforms(pivots: Float[Tensor, "J 3"], pose: Pose) -> Float[Tensor, "B J 4 4"]:
    """Forward kinematics: where each joint takes the space that was around it at rest.

    The root's pivot is the ground below the character: it is squashed towards that.
    """
    turn = rotations(pose.angles)
    local = affine(turn, pivots - (turn * pivots[:, None, :]).sum(-1))  # [B J 4 4], about pivots
    scale = torch.exp(torch.stack([-pose.stretch / 2, -pose.stretch / 2, pose.stretch], dim=-1))
    squash = affine(torch.diag_embed(scale), pivots[0] * (1 - scale) + pose.shift)
    world = [squash @ local[:, 0]]
    for joint in range(1, len(JOINTS)):
        world.append(world[PARENTS[joint]] @ local[:, joint])
    return torch.stack(world, dim=1)


@dataclasses.dataclass(frozen=True)
class Character:
    """A posable body of E ellipsoids."""

    species: str
    seed: int | None  # None is the canonical look
    parts: tuple[str, ...]  # E names
    frames: Float[Tensor, "E 4 4"]  # unit sphere -> world, at rest
    colours: Float[Tensor, "E 3"]
    joints: Int[Tensor, " E"]  # which joint carries a part
    pivots: Float[Tensor, "J 3"]  # where the joints turn, at rest

    def posed(self, pose: Pose) -> Ellipsoids:
        """The body in each of a pose's B moments."""
        frames = joint_transforms(self.pivots, pose)[:, self.joints] @ self.frames
        return Ellipsoids(frames, self.colours.expand(len(frames), -1, -1))

    def at_rest(self) -> Ellipsoids:
        """One scene."""
        return Ellipsoids(self.frames[None], self.colours[None])

    def to(self, device: torch.device | str) -> "Character":
        """The same on another device."""
        tensors = ("frames", "colours", "joints", "pivots")
        return dataclasses.replace(self, **{k: getattr(self, k).to(device) for k in tensors})
