"""The denoising loss and its gradient for the token's rows, through models that are frozen.

On a GPU both are recorded as one CUDA graph, so that launching kernels costs the CPU nothing; at
float16 the UNet's layers are those that make no gradient of a weight (guidance/frozen_unet.py).
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..guidance.frozen_unet import differentiable
from ..guidance.speed import capture, warm_up
from .denoising import Batch, denoising_loss
from .inputs import Inputs


class LossAndGradient(NamedTuple):
    loss: Float[Tensor, ""]
    gradient: Float[Tensor, "n D"]  # of scale times the loss, for the rows


class TokenGradient:
    """
    unet: called as diffusers' UNets are.
    records: whether calls are recorded, once for each shape of their inputs. What such a call
        returns lies where the next one puts its own.
    """

    def __init__(self, unet: Callable[..., tuple[Tensor]], inputs: Inputs, records: bool):
        self.unet, self.inputs, self.records = unet, inputs, records
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
        *batch, scale = given
        models, rows = self.inputs.models, self.inputs.word.rows
        with torch.enable_grad():
            text = models.text_encoder(Batch(*batch).ids)[0].to(self.inputs.dtype)
            loss = denoising_loss(self.unet, Batch(*batch), text)
            (gradient,) = torch.autograd.grad(loss, rows, scale)
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
    unet = inputs.models.unet
    if args.compile:
        return TokenGradient(torch.compile(unet), inputs, records=False)
    if device.type == "cuda" and inputs.dtype == torch.float16:
        differentiable(unet)
    attention = {type(processor).__name__ for processor in unet.attn_processors.values()}
    # what checkpointing asks of the random state can't be recorded; of xformers nobody knows
    records = not args.gradient_checkpointing and not any("XFormers" in name for name in attention)
    return TokenGradient(unet, inputs, records and device.type == "cuda")
