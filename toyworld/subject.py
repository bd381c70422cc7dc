"""An example subject: a character's picture as a user would bring it, and its cut-out.

`python -m animate124.toyworld.subject --species panda --out load/toy-panda` writes `image.png`, a
photo on a plain light background, and `_rgba.png`, the same pixels with alpha: exactly what the
reference camera (elevation 0, azimuth 0, distance 2.5, fov 40 degrees) sees, not recentred.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..data.cameras import Cameras
from .characters import SPECIES, make_character
from .motions import MOTIONS, animate
from .ray_tracing import render

BACKGROUND = (0.90, 0.93, 0.95)  # of the photo: a light wall


def over(
    rgb: Float[Tensor, "*B 3"], alpha: Float[Tensor, "*B 1"], background: Sequence[float]
) -> Float[Tensor, "*B 3"]:
    """A picture that stands on white, on another background."""
    return rgb - (1 - alpha) * (1 - rgb.new_tensor(background))


def straight(rgb: Float[Tensor, "*B 3"], alpha: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B 4"]:
    """The RGBA picture whose composite on white is `rgb`; white where it is transparent."""
    colour = torch.where(alpha > 0, (rgb - (1 - alpha)) / alpha.clamp_min(1e-6), 1)
    return torch.cat([colour, alpha], dim=-1)


def to_uint8(image: Float[Tensor, "H W C"]) -> UInt8[np.ndarray, "H W C"]:
    """[0, 1] -> 0..255, rounded."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_subject(
    out: Path,
    species: str,
    *,
    motion: str = "still",
    time: float = 0.0,
    seed: int | None = None,
    size: int = 512,
) -> dict[str, Path]:
    """Renders a character at frame time `time` and writes its photo and its cut-out."""
    scene = animate(make_character(species, seed), motion, torch.tensor([time]))
    picture = render(scene, Cameras.of().batch(size, size), supersample=4)
    rgb, alpha = picture["rgb"][0], picture["alpha"][0]
    out.mkdir(parents=True, exist_ok=True)
    files = {"photo": out / "image.png", "cut-out": out / "_rgba.png"}
    images = {"photo": over(rgb, alpha, BACKGROUND), "cut-out": straight(rgb, alpha)}
    for name, path in files.items():
        Image.fromarray(to_uint8(images[name])).save(path, optimize=True)
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes a toy character's photo and cut-out.")
    parser.add_argument("--species", choices=SPECIES, default="panda")
    parser.add_argument("--seed", type=int, help="an individual's number; the usual look without")
    parser.add_argument("--motion", choices=MOTIONS, default="still")
    parser.add_argument("--time", type=float, default=0.0, help="frame time in [0, 1]")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    args = parser.parse_args(arguments)
    if args.size < 1:
        parser.error(f"--size is {args.size}; a picture needs 1 pixel or more.")
    files = write_subject(
        args.out,
        args.species,
        motion=args.motion,
        time=args.time,
        seed=args.seed,
        size=args.size,
    )
    who = f"{args.species}" + ("" if args.seed is None else f" number {args.seed}")
    print(f"A toy {who}, motion {args.motion!r} at {args.time:g}, {args.size} x {args.size} px:")
    for name, path in files.items():
        print(f"  {name:8} {path}")


if __name__ == "__main__":
    main()
