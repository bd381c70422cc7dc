"""Calls whose graph is kept as far as memory allows, and made anew in the backward pass beyond."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def joined_parts(calls: Sequence[Callable[[], Any]], sizes: Sequence[int], most: int) -> Any:
    """What the calls return, tensors or dicts of them, `sizes` rows each, one after the other.

    The last ones, of at most `most` rows together (0: any), keep their graph; the others are called
    once more in the backward pass, one by one. They draw no random numbers.
    """
    if len(calls) == 1:
        return calls[0]()
    once_more = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    left = sum(sizes)  # rows of this call and those after it
    parts = []
    for call, size in zip(calls, sizes, strict=True):
        again = 0 < most < left
        left -= size
        parts.append(once_more(call) if again else call())
    if torch.is_tensor(parts[0]):
        return torch.cat(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
