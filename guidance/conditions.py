"""What a prior's network is shown beside noisy latents and their time.

A Condition is a dict of tensors, each [2B ...] with the conditional rows first, so that a call of
the network can be recorded (speed.py). These keys mean the same to every prior:

tokens    [2B L D]      what cross-attention reads: a text's, an image's
mask      [2B L]        the tokens that count, where a text reader says so (padding doesn't)
channels  [2B c *size]  further channels of the latents: an image's own latents, a mask
first     [2B C n h w]  clean first frames in the place of noisy ones

Any other is its prior's own: a ControlNet's picture, frame rates. Torch alone.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Condition = dict[str, Tensor]


def both(x: Shaped[Tensor, " B *shape"]) -> Shaped[Tensor, " B2 *shape"]:
    """The same for the conditional and the unconditional half."""
    return torch.cat([x, x])


def or_nothing(x: Shaped[Tensor, " B *shape"]) -> Shaped[Tensor, " B2 *shape"]:
    """x for the conditional half, zeros for the unconditional one."""
    return torch.cat([x, torch.zeros_like(x)])


def shown(
    z_t: Float[Tensor, "B2 C *size"], t: Shaped[Tensor, " B2"], condition: Condition
) -> tuple[Float[Tensor, "B2 c *size"], Shaped[Tensor, " B2 *F"]]:
    """What the network sees for z_t and its time t. With clean first frames there is a t for each
    latent frame, [2B F], and theirs is 0, the data's (Wan 2.2, LTX-Video)."""
    if "first" in condition:
        first = condition["first"].to(z_t)
        n = first.shape[2]
        z_t = torch.cat([first, z_t[:, :, n:]], dim=2)
        t = torch.cat([t.new_zeros(len(t), n), t[:, None].expand(-1, z_t.shape[2] - n)], dim=1)
    if "channels" in condition:
        z_t = torch.cat([z_t, condition["channels"]], dim=1)
    return z_t, t


def with_clean_part(
    z: Float[Tensor, "B C *size"], condition: Condition
) -> Float[Tensor, "B C *size"]:
    """z with the clean first frames, where there are any: the network made the others."""
    if "first" not in condition:
        return z
    first = condition["first"].to(z)[: len(z)]
    return torch.cat([first, z[:, :, first.shape[2] :]], dim=2)


def noised_part(
    grad: Float[Tensor, "B C *size"], condition: Condition
) -> Float[Tensor, "B C *size"]:
    """grad with 0 for clean first frames: the network was never asked what noise is in them."""
    if "first" not in condition:
        return grad
    n = condition["first"].shape[2]
    return torch.cat([torch.zeros_like(grad[:, :, :n]), grad[:, :, n:]], dim=2)
