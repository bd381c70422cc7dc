"""The loss of a frozen UNet's prediction and its gradient for the text, which is all that the new
rows need of the UNet.

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
    gradient: Float[Tensor, "B L D"]  # of scale times the loss, for the text


class TextGradient:
    """
    unet: called as diffusers' UNets are; it runs in the dtype of the text.
    records: whether calls are recorded, once for each shape of their inputs.
    """

    def __init__(self, unet: Callable[..., tuple[Tensor]], records: bool):
        self.unet, self.records = unet, records
        self.recordings: dict[tuple, Recording] = {}

    def __call__(
        self, batch: Batch, text: Float[Tensor, "B L D"], scale: Float[Tensor, ""]
    ) -> LossAndGradient:
        inputs = (*batch, text.detach(), scale)
        if not self.records:
            return self.compute(*inputs)
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self.recordings:
            self.recordings[key] = Recording(self.compute, inputs)
        return self.recordings[key](inputs)

    def compute(self, *inputs: Tensor) -> LossAndGradient:
        """inputs: a batch, its text and the scale."""
        *batch, text, scale = inputs
        with torch.enable_grad():
            text = text.detach().requires_grad_()
            loss = denoising_loss(self.unet, Batch(*batch), text)
            (gradient,) = torch.autograd.grad(loss, text, scale)
        return LossAndGradient(loss.detach(), gradient)

    def forget(self) -> None:
        """Frees what recordings hold; they are made again when they are needed."""
        self.recordings.clear()


class Recording:
    """A call with its results, as a CUDA graph. They lie where the next call puts its own."""

    def __init__(self, call: Callable[..., LossAndGradient], inputs: tuple[Tensor, ...]):
        self.placed = [value.clone() for value in inputs]

        def again() -> LossAndGradient:
            return call(*self.placed)

        warm_up(again)
        self.graph, self.results = capture(again, None)

    def __call__(self, inputs: tuple[Tensor, ...]) -> LossAndGradient:
        for place, value in zip(self.placed, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.results


def text_gradient(args: argparse.Namespace, inputs: Inputs, device: torch.device) -> TextGradient:
    """As fast as device, precision and flags let it be."""
    unet = inputs.models.unet
    if args.compile:
        return TextGradient(torch.compile(unet), records=False)
    if device.type == "cuda" and inputs.dtype == torch.float16:
        differentiable(unet)
    attention = {type(processor).__name__ for processor in unet.attn_processors.values()}
    # what checkpointing asks of the random state can't be recorded; of xformers nobody knows
    records = not args.gradient_checkpointing and not any("XFormers" in name for name in attention)
    return TextGradient(unet, records and device.type == "cuda")
