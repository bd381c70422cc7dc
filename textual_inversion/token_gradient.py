"""The denoising loss and its gradient for the token's rows, through models that are frozen.

On a GPU both are recorded as one CUDA graph, so that launching kernels costs the CPU nothing; at
float16 the layers of UNet and text encoder are those that make no gradient of a weight
(guidance/frozen_unet.py, frozen_text.py).
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..guidance.frozen_unet import differentiable
from ..guidance.speed import capture, warm_up
from .denoising import Batch, denoising_loss
from .frozen_text import FrozenText, is_plain
from .inputs import Inputs


class LossAndGradient(NamedTuple):
    loss: Float[Tensor, ""]
    gradient: Float[Tensor, "n D"]  # of scale times the loss, for the rows


class TokenGradient:
    """
    unet: called as diffusers' UNets are.
    encode: ids [B L] -> text [B L D], in the dtype of the UNet.
    records: whether calls are recorded, once for each shape of their inputs. What such a call
        returns lies where the next one puts its own.
    """

    def __init__(
        self,
        unet: Callable[..., tuple[Tensor]],
        encode: Callable[[Tensor], Tensor],
        rows: Float[Tensor, "n D"],
        records: bool,
    ):
        self.unet, self.encode, self.rows, self.records = unet, encode, rows, records
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, batch: Batch, scale: Float[Tensor, ""]) -> LossAndGradient:
        given = (*batch, scale)
        if not self.records:
            return self.compute(*given)
        key = tuple((value.shape, value.dtype) for value in given)
        if key not in self.recordings:
            self.recordings[key] = Recording(self.compute, given)
        return self.recordings[key](given)

    def compute(self, *given: Tensor) -> LossAndGradient:
        """given: a batch and the scale."""
        *parts, scale = given
        batch = Batch(*parts)
        with torch.enable_grad():
            loss = denoising_loss(self.unet, batch, self.encode(batch.ids))
            (gradient,) = torch.autograd.grad(loss, self.rows, scale)
        return LossAndGradient(loss.detach(), gradient)

    def forget(self) -> None:
        """Frees what recordings hold; they are made again when they are needed."""
        self.recordings.clear()


class Recording:
    """A call with its results, as a CUDA graph."""

    def __init__(self, call: Callable[..., LossAndGradient], given: tuple[Tensor, ...]):
        self.placed = [value.clone() for value in given]

        def again() -> LossAndGradient:
            return call(*self.placed)

        warm_up(again)
        self.graph, self.results = capture(again, None)

    def __call__(self, given: tuple[Tensor, ...]) -> LossAndGradient:
        for place, value in zip(self.placed, given, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.results


def token_gradient(args: argparse.Namespace, inputs: Inputs, device: torch.device) -> TokenGradient:
    """As fast as device, precision and flags let it be."""
    models, rows = inputs.models, inputs.word.rows

    def encode(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        return models.text_encoder(ids)[0].to(inputs.dtype)

    if args.compile:
        return TokenGradient(torch.compile(models.unet), encode, rows, records=False)
    if device.type == "cuda" and inputs.dtype == torch.float16:
        differentiable(models.unet)
        if is_plain(models.text_encoder):
            encode = FrozenText(models.text_encoder)
    attention = {type(processor).__name__ for processor in models.unet.attn_processors.values()}
    # what checkpointing asks of the random state can't be recorded; of xformers nobody knows
    records = not args.gradient_checkpointing and not any("XFormers" in name for name in attention)
    return TokenGradient(models.unet, encode, rows, records and device.type == "cuda")
