"""How like its individual a scene stays, in motion and from all around.

Frames are embedded by the identity network (identity.py) and held against the given picture, on a
way that leads from a floor to a ceiling: what the same figure is of other individuals of the
species that do the same (the mean over them), and of the true clip.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..toyworld.banks import HELD_OUT, draw
from . import identity
from .truth import SIZE, Subject, around, front

NETWORK = Path(__file__).resolve().parents[1] / "load" / "toy-priors" / "identity"
OTHERS = tuple(HELD_OUT + 9000 + i for i in range(6))  # seeds of the floor's individuals


@torch.no_grad()
def cosines(
    model: identity.IdentityNetwork,
    pictures: Float[Tensor, "N S S 3"],
    given: Float[Tensor, "1 S S 3"],
) -> Float[Tensor, " N"]:
    """Of each picture's embedding to the given picture's."""
    return (model(pictures.permute(0, 3, 1, 2)) @ model(given.permute(0, 3, 1, 2)).T)[:, 0]


def shares(
    ours: Float[Tensor, " N"], truth: Float[Tensor, " N"], others: Float[Tensor, "K N"]
) -> dict[str, float]:
    """From the cosines of N frames: the mean and the worst, floor and ceiling of both, and how far
    ours are on the way from floor to ceiling: (cosine - floor) / (ceiling - floor).
    """
    found = {}
    for name, of in (("", torch.mean), ("_worst", torch.amin)):
        cosine, ceiling, floor = of(ours), of(truth), of(others, dim=1).mean()
        found |= {
            f"identity{name}": float(cosine),
            f"identity_ceiling{name}": float(ceiling),
            f"identity_floor{name}": float(floor),
            f"identity_share{name}": float((cosine - floor) / (ceiling - floor)),
        }
    return found


def others(subject: Subject) -> Float[Tensor, "K N S S 3"]:
    """Individuals of its species, each in the frames that `around` names, doing as it does."""
    cameras, tau = around()
    kin = [Subject(subject.species, subject.motion, seed) for seed in OTHERS]
    scenes = [each.scenes(each.motion, tau) for each in kin]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = draw(scenes, cameras.map(lambda v: v.repeat(len(kin))), SIZE, device)
    return images.cpu().permute(0, 2, 3, 1).unflatten(0, (len(kin), -1)) / 255


def likeness(
    subject: Subject, ours: Float[Tensor, "N S S 3"], truth: Float[Tensor, "N S S 3"]
) -> dict[str, float]:
    """Figures of the frames that `around` names, ours and the true ones."""
    model = identity.load(NETWORK)
    given = subject.pictures(front(1), torch.zeros(1))
    return shares(
        cosines(model, ours, given),
        cosines(model, truth, given),
        torch.stack([cosines(model, kin, given) for kin in others(subject)]),
    )
