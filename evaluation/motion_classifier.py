"""Names the motion of a clip: a small network trained on ground truth, for evaluation alone.

A clip is T = 16 frames of 32 px from the reference camera, at frame times i / T. The network sees
each frame beside its difference from the clip's mean, so that it looks at what moves.

    python -m animate124.evaluation.motion_classifier --out load/toy-priors/motion-classifier
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from ..data.cameras import Cameras
from ..toyworld.banks import HELD_OUT, draw, random_motion
from ..toyworld.characters import SPECIES, make_character
from ..toyworld.motions import MOTIONS, animate
from . import shipped

FRAMES, SIZE = 16, 32
NAMES = tuple(MOTIONS)


class MotionClassifier(nn.Module):
    """Convolutions over each picture, then over time."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(6, 16, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, width, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(width * (SIZE // 8) ** 2, 2 * width),
        )
        self.watch = nn.Sequential(
            nn.Conv1d(2 * width, 2 * width, 5, padding=2, padding_mode="circular"),
            nn.GELU(),
            nn.Conv1d(2 * width, 2 * width, 5, padding=2, padding_mode="circular"),
            nn.GELU(),
        )
        self.name = nn.Linear(4 * width, len(NAMES))

    def forward(self, clips: Float[Tensor, "B F 3 S S"]) -> Float[Tensor, "B M"]:
        """Scores of the motions in `NAMES`; colours in [0, 1]."""
        moving = clips - clips.mean(dim=1, keepdim=True)
        seen = self.look(torch.cat([clips - 0.5, 4 * moving], dim=2).flatten(0, 1))
        over_time = self.watch(seen.unflatten(0, clips.shape[:2]).transpose(1, 2))
        return self.name(torch.cat([over_time.mean(dim=2), over_time.amax(dim=2)], dim=1))


def true_clips(
    n: int, *, first_seed: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "N F 3 S S"], Int[Tensor, " N"]]:
    """Ground-truth clips and their motions; characters are drawn from 10 000 seeds on."""
    dice = random.Random(f"motions {seed}")
    tau = torch.arange(FRAMES) / FRAMES
    scenes, labels = [], []
    for i in range(n):
        species = dice.choice(list(SPECIES))
        character = make_character(species, first_seed + dice.randrange(HELD_OUT))
        labels.append(i % len(NAMES))
        scenes.append(animate(character, NAMES[labels[-1]], tau, **random_motion(dice)))
    cameras = Cameras.of(torch.zeros(n * FRAMES))
    images = draw(scenes, cameras, SIZE, device).unflatten(0, (n, FRAMES))
    return images.float() / 255, torch.tensor(labels, device=device)


def worn(
    clips: Float[Tensor, "B F 3 S S"], generator: torch.Generator | None = None
) -> Float[Tensor, "B F 3 S S"]:
    """As an optimised scene shows them: blurred, grainy, paler or stronger, at any phase, played
    backwards or forwards."""
    n, frames = clips.shape[:2]
    flat = clips.flatten(0, 1)
    blurred = F.interpolate(F.avg_pool2d(flat, 2), scale_factor=2, mode="bilinear").view_as(clips)
    share = torch.rand(n, 1, 1, 1, 1, generator=generator)
    grain = 0.1 * torch.rand(n, 1, 1, 1, 1, generator=generator)
    contrast = 0.7 + 0.6 * torch.rand(n, 1, 1, 1, 1, generator=generator)
    clips = torch.lerp(clips, blurred, share)
    clips = 0.5 + contrast * (clips - 0.5) + grain * torch.randn(clips.shape, generator=generator)
    shift = torch.randint(frames, (n, 1), generator=generator)
    order = (torch.arange(frames) + shift) % frames
    order = torch.where(torch.rand(n, 1, generator=generator) < 0.5, order, order.flip(1))
    return clips[torch.arange(n)[:, None], order].clamp(0, 1)


def train(steps: int, n_clips: int, *, seed: int = 0, batch: int = 64) -> MotionClassifier:
    """A classifier of training characters' motions."""
    torch.manual_seed(seed)
    model = MotionClassifier()
    clips, labels = true_clips(n_clips, first_seed=0, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="motion classifier", mininterval=5):
        rows = torch.randint(len(labels), (batch,))
        loss = F.cross_entropy(model(worn(clips[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(model: MotionClassifier, n: int = 280) -> float:
    """On clips of characters that training never saw."""
    clips, labels = true_clips(n, first_seed=HELD_OUT, seed=1)
    return float((model(clips).argmax(dim=1) == labels).float().mean())


def load(folder: Path) -> MotionClassifier:
    return shipped.read(folder, MotionClassifier())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--clips", type=int, default=2800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    model = train(args.steps, args.clips, seed=args.seed)
    found = {"accuracy": accuracy(model), "steps": args.steps, "clips": args.clips}
    shipped.write(args.out, model, {**found, "seed": args.seed, "motions": NAMES})


if __name__ == "__main__":
    main()
