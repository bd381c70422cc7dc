"""A loss of pictures that takes its gradient as soon as its value is known. So the graph from
latents to pictures, the largest part of what training holds, is gone before the next prior makes
its own; kept until the step's backward pass, those of all priors would be there at the same time.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class KnownGradient(torch.autograd.Function):
    """A value, whose gradient in x is `slopes`."""

    @staticmethod
    def forward(ctx, x, value, slopes):
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (slopes,) = ctx.saved_tensors
        return grad * slopes, None, None


def differentiated(
    loss: Float[Tensor, ""], seen: Float[Tensor, " *shape"], pictures: Float[Tensor, " *shape"]
) -> Float[Tensor, ""]:
    """The loss, whose graph begins at `seen`, as one of the pictures that `seen` is a copy of."""
    if not loss.requires_grad:
        return loss
    (slopes,) = torch.autograd.grad(loss, seen)
    return KnownGradient.apply(pictures, loss.detach(), slopes)
