"""Tells individuals apart, in any pose and view: a small network for evaluation alone.

A picture of S = 64 px on white becomes a vector of length 1 (an embedding); the cosine of two says
whether both could be photos of one individual. It is trained with InfoNCE (van den Oord et al.,
2018, eq. 4, both ways): two pictures of one individual in other poses and views attract each
other; those of the batch's other individuals, half of them of the same species, are pushed away.
So is the individual's own picture when it is ruined (blurred until no eye is left, smeared over
several places, or torn): without that the network looks at colours alone, and a faceless smear
passes.

    python -m animate124.evaluation.identity --out load/toy-priors/identity
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from ..data.cameras import Cameras
from ..toyworld.banks import HELD_OUT, draw, random_motion
from ..toyworld.characters import SPECIES, make_character
from ..toyworld.motions import MOTIONS, animate
from . import shipped
from .wear import ruined, worn

SIZE = 64
ELEVATION_RANGE = (-45.0, 45.0)  # degrees
MOTIONS_EACH = 4  # of an individual's pictures; two times each, a view of its own for each
TEMPERATURE = 0.1  # of InfoNCE
N_UNSEEN = 5000  # seeds from HELD_OUT on whose individuals measure the accuracy
RIVALS = 16  # individuals of one species among which one is to be found


class IdentityNetwork(nn.Module):
    """Convolutions, each halving the picture; then means and maxima over what is left."""

    def __init__(self, width: int = 32, length: int = 128) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 3 * width, 4 * width]
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(itertools.pairwise(widths)):
            size = 5 if k == 0 else 3
            layers += [nn.Conv2d(before, after, size, 2, size // 2)]
            layers += [nn.GroupNorm(8, after), nn.GELU()]
        layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.GroupNorm(8, 4 * width)]
        self.look = nn.Sequential(*layers, nn.GELU())
        self.name = nn.Linear(8 * width, length)

    def forward(self, pictures: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        """Embeddings of length 1; colours in [0, 1] on white."""
        seen = self.look(2 * pictures - 1)
        return F.normalize(self.name(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)), dim=1)


def individuals(
    n: int, *, first_seed: int, n_seeds: int, seed: int, device: torch.device | str
) -> tuple[UInt8[Tensor, "N V 3 S S"], Int[Tensor, " N"]]:
    """Pictures of n different individuals, and their species.

    Of each the first is as it is given to the method (front, at rest), the others show it in random
    motions from random views. Individual i's species is number i modulo 8.
    """
    dice = random.Random(f"individuals {seed}")
    moving = [motion for motion in MOTIONS if motion != "still"]
    kinds = list(SPECIES)
    seeds = dice.sample(range(first_seed, first_seed + n_seeds), n)
    scenes, angles = [], []
    for i, individual in enumerate(seeds):
        character = make_character(kinds[i % len(kinds)], individual)
        scenes.append(animate(character, "still", torch.zeros(1)))
        angles.append((0.0, 0.0))
        for motion in dice.sample(moving, MOTIONS_EACH):
            tau = torch.tensor([dice.random(), dice.random()])
            scenes.append(animate(character, motion, tau, **random_motion(dice)))
            angles += [(dice.uniform(*ELEVATION_RANGE), dice.uniform(-180, 180)) for _ in tau]
    elevation, azimuth = torch.tensor(angles).T
    images = draw(scenes, Cameras.of(elevation, azimuth), SIZE, device)
    return images.unflatten(0, (n, -1)), torch.arange(n, device=device) % len(kinds)


def info_nce(
    one: Float[Tensor, "B E"], other: Float[Tensor, "B E"], ruins: Float[Tensor, "B E"]
) -> Float[Tensor, ""]:
    """Cross-entropy of finding row i of one among the rows of the other and row i of the ruins; the
    mean of that and the other way."""
    places = torch.arange(len(one), device=one.device)
    losses = []
    for anchors, choice in ((one, other), (other, one)):
        ruin = (anchors * ruins).sum(dim=1, keepdim=True)
        scores = torch.cat([anchors @ choice.T, ruin], dim=1) / TEMPERATURE
        losses.append(F.cross_entropy(scores, places))
    return torch.stack(losses).mean()


def pairs(
    images: UInt8[Tensor, "N V 3 S S"], batch: int
) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]]:
    """Two pictures each of different individuals, and the second one ruined.

    They are of two species, so that half of an individual's rivals are of its own. The first of
    every second pair is the given picture.
    """
    n, views = images.shape[:2]
    n_kinds, device = len(SPECIES), images.device
    kinds = torch.randperm(n_kinds, device=device)[:2, None]
    who = torch.rand(2, n // n_kinds, device=device).argsort(dim=1)[:, : batch // 2]
    who = (who * n_kinds + kinds).flatten()
    first, other = torch.rand(len(who), views, device=device).argsort(dim=1)[:, :2].T
    first[::2], other[::2] = 0, 1 + other[::2] % (views - 1)
    one, two = (images[who, which].float() / 255 for which in (first, other))
    return worn(one), worn(two), worn(ruined(two))


def train(
    steps: int, n: int, *, seed: int = 0, batch: int = 256, device: torch.device | str = "cpu"
) -> IdentityNetwork:
    """A network that knows n training individuals; a batch holds at most 2 n / 8 of them."""
    torch.manual_seed(seed)
    model = IdentityNetwork().to(device)
    images, _ = individuals(n, first_seed=0, n_seeds=HELD_OUT, seed=seed, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="identity", mininterval=5):
        loss = info_nce(*model(torch.cat(pairs(images, batch))).chunk(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False).cpu()


@torch.no_grad()
def accuracy(model: IdentityNetwork, n: int, device: torch.device | str = "cpu") -> dict:
    """On individuals that training never saw, of which one picture from the front is given:
    how often a picture in another pose and view finds its own among RIVALS of its species; the area
    under the curve of the cosines (how often the own individual's is higher than another one's of
    its species); and how often a picture's is higher whole than ruined.
    """
    images, kinds = individuals(n, first_seed=HELD_OUT, n_seeds=N_UNSEEN, seed=1, device=device)
    model = model.to(device)
    parts = [part.float() / 255 for part in images.flatten(0, 1).split(512)]
    whole, spoilt = (
        torch.cat([model(look(part)) for part in parts]).unflatten(0, images.shape[:2])
        for look in (lambda pictures: pictures, ruined)
    )
    given, moving = whole[:, :1], whole[:, 1:]
    better = (given * moving).sum(2) > (given * spoilt[:, 1:]).sum(2)
    found, higher = [], []
    for kind in range(len(SPECIES)):
        rows = (kinds == kind).nonzero().flatten()
        for some in rows.split(RIVALS):
            if len(some) < RIVALS:
                continue
            cosines = moving[some] @ given[some, 0].T  # [R V R]
            own = cosines.diagonal(dim1=0, dim2=2).T  # [R V]
            found.append((own[..., None] >= cosines).all(dim=2).float().mean())
            others = ~torch.eye(RIVALS, dtype=torch.bool, device=cosines.device)
            strange = cosines.transpose(1, 2)[others]  # [R, V]
            higher.append((own.flatten()[:, None] > strange.flatten()).float().mean())
    model.cpu()
    return {
        f"found_among_{RIVALS}": float(torch.stack(found).mean()),
        "area_under_curve": float(torch.stack(higher).mean()),
        "whole_above_ruined": float(better.float().mean()),
    }


def load(folder: Path) -> IdentityNetwork:
    return shipped.read(folder, IdentityNetwork())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--individuals", type=int, default=6400)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--unseen", type=int, default=1024, help="that measure its accuracy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = {"seed": args.seed, "batch": args.batch}
    model = train(args.steps, args.individuals, **asked, device=device)
    found = {**accuracy(model, args.unseen, device), "unseen": args.unseen}
    found |= {"steps": args.steps, "individuals": args.individuals, **asked}
    shipped.write(args.out, model, found)


if __name__ == "__main__":
    main()
