"""Gradients of a fast twin that are wanted differentiable again, as analytic normals want them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_again(
    definition: Callable[..., Tensor | Sequence[Tensor]],
    arguments: Sequence[Tensor],
    needed: Sequence[bool],
    grads: Sequence[Tensor],
) -> list[Tensor | None]:
    """The definition's gradients, which have a graph of their own; None where none is needed.

    For a twin's `backward`: there grad mode is on if and only if someone asked for `create_graph`.
    """
    wanted = [argument for argument, own in zip(arguments, needed, strict=True) if own]
    found = iter(torch.autograd.grad(definition(*arguments), wanted, grads, create_graph=True))
    return [next(found) if own else None for own in needed]
