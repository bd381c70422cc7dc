"""Where the hash grid's derivative in a point jumps, and float32 and float64 may disagree on it."""

import torch


def off_lines(x: torch.Tensor, spec, margin: float) -> torch.Tensor:
    """Whether no coordinate of a point [N D] lies within so much of a cell of a lattice line, or on
    a face of the box."""
    far = ((x.abs() > 1e-4) & ((x - 1).abs() > 1e-4)).all(dim=-1)
    for level in spec.levels:
        position = x.double() * level.scale + 0.5
        far &= ((position - position.round()).abs() > margin).all(dim=-1)
    return far
