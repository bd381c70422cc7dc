"""What optimised scenes do to pictures of 64 px on white, colours in [0, 1]: worn, an individual is
still who it was; ruined, nobody is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def noise_like(pictures: Tensor, *shape: int) -> Tensor:
    """Normal numbers, a row a picture."""
    return torch.randn(len(pictures), *shape, device=pictures.device)


def share_of(pictures: Tensor, low: float, high: float) -> Float[Tensor, "B 1 1 1"]:
    """Uniform numbers in [low, high], one a picture."""
    return low + (high - low) * torch.rand(len(pictures), 1, 1, 1, device=pictures.device)


def blurred(pictures: Float[Tensor, "B 3 S S"], n: int) -> Float[Tensor, "B 3 S S"]:
    """Means over n x n pixels, drawn large again."""
    return F.interpolate(F.avg_pool2d(pictures, n), scale_factor=n, mode="bilinear")


def resampled(
    pictures: Float[Tensor, "B 3 S S"], shift: Float[Tensor, "B 2 S S"]
) -> Float[Tensor, "B 3 S S"]:
    """Each pixel is taken from a place that many pixels (x, y) away; white beyond the edge."""
    eye = torch.eye(2, 3, device=pictures.device).expand(len(pictures), 2, 3)
    grid = F.affine_grid(eye, list(pictures.shape), align_corners=False)
    places = grid + shift.permute(0, 2, 3, 1) * (2 / pictures.shape[-1])
    return 1 - F.grid_sample(1 - pictures, places, align_corners=False)


def warped(
    pictures: Float[Tensor, "B 3 S S"], pixels: Float[Tensor, "B 1 1 1"]
) -> Float[Tensor, "B 3 S S"]:
    """Bent by smooth noise, that many pixels at a standard deviation."""
    lattice = noise_like(pictures, 2, 9, 9)
    return resampled(pictures, pixels * F.interpolate(lattice, pictures.shape[-1], mode="bicubic"))


def smeared(pictures: Float[Tensor, "B 3 S S"], copies: int = 3) -> Float[Tensor, "B 3 S S"]:
    """The mean of copies that are shifted and turned, as of a face that time repaints."""
    size = pictures.shape[-1]
    line = torch.linspace(-size / 2, size / 2, size, device=pictures.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    rows = []
    for _ in range(copies):
        angle, right, down = (share_of(pictures, -h, h)[:, 0] for h in (0.35, 5.0, 5.0))
        rows.append(torch.stack([right - angle * y, down + angle * x], dim=1))
    return torch.stack([resampled(pictures, shift) for shift in rows]).mean(dim=0)


def ruined(pictures: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """What is no photo of its individual any more: a third each is blurred, smeared, torn."""
    ways = torch.stack(
        [
            torch.lerp(blurred(pictures, 4), blurred(pictures, 8), share_of(pictures, 0, 1)),
            smeared(pictures),
            warped(pictures, share_of(pictures, 2.5, 5)),
        ]
    )
    rows = torch.arange(len(pictures), device=pictures.device)
    return ways[torch.randint(len(ways), rows.shape, device=rows.device), rows]


def worn(pictures: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """As an optimised scene shows them: a little bent, blurred, grainy, paler or stronger; white
    stays white."""
    pictures = warped(pictures, share_of(pictures, 0, 0.7))
    pictures = torch.lerp(pictures, blurred(pictures, 2), share_of(pictures, 0, 1))
    grain = share_of(pictures, 0, 0.08) * noise_like(pictures, *pictures.shape[1:])
    return (1 - share_of(pictures, 0.85, 1.15) * (1 - pictures) + grain).clamp(0, 1)
