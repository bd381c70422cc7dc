"""The encoder of Wan's VAE (2.1's and 2.2's) with frozen weights: the same latents and the same
gradient from less memory.

diffusers encodes a clip's first frame, then four at a time, and keeps what autograd wants of all of
them. Here a clip is encoded at once, which is the same: its convolutions look back in time alone.
A norm with its activation keeps its input and is made anew for the gradient, convolutions keep
nothing (frozen_layers.py). With `chunk` frames at a time, what convolutions saw last goes from one
part to the next, and all but the last part are made anew in the backward pass: exactly, too.

It sees them upside down, and so do its weights, which makes halving them cheap (frozen_layers.py).

On a GPU clips have their channels innermost from the first convolution on, and norms are kernels
(rms_norm.cu).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import rms_norm_cuda
from .frozen_layers import Block, FrozenConvolution, halve, turn, turn_over
from .frozen_vae import MatrixAttention

Clips = Float[Tensor, "B _ _ _ _"]  # channels, frames, height, width
ENTRIES = 2**24  # that a norm looks at at once: it takes several times that in float32
SMALLEST = 1e-12  # norm of a pixel's channels, as torch's normalize has it


class Past:
    """The frames that causal convolutions saw last, in the order in which they are asked.

    seen: those of the clip's part before; None: this is the first part. keeps: a part comes after.
    """

    def __init__(self, seen: Sequence[Tensor] | None, keeps: bool):
        self.first = seen is None
        self.seen = list(seen or ())
        self.keeps = keeps
        self.kept: list[Tensor] = []

    def joined(self, x: Clips, n: int) -> Clips:
        """The n frames before x, which isn't the first part, and x."""
        x = torch.cat([self.seen.pop(0), x], dim=2)
        self.keep(x, n)
        return x

    def keep(self, x: Clips, n: int) -> None:
        """The last n frames of x; zeros are before the first part."""
        if self.keeps:
            lacking = max(n - x.shape[2], 0) if self.first else 0
            self.kept.append(after_zeros(x[:, :, -n:], lacking))  # a copy


class NormSilu(torch.autograd.Function):
    """silu(x / |x| * gain + bias), |x| over the channels; keeps x. The definition of what
    rms_norm_cuda.py has as kernels."""

    @staticmethod
    def forward(ctx, x, gain, bias):
        ctx.save_for_backward(x, gain, bias)
        out = torch.empty_like(x)
        for part in parts_of(x):
            unit, _ = direction(x[:, :, part])
            out[:, :, part] = F.silu(unit * gain + bias)
        return out

    @staticmethod
    def backward(ctx, *grads):
        x, gain, bias = ctx.saved_tensors
        out = torch.empty_like(x)
        for part in parts_of(x):
            unit, length = direction(x[:, :, part])
            grad = torch.ops.aten.silu_backward(grads[0][:, :, part].to(unit), unit * gain + bias)
            grad *= gain
            along = (grad * unit).sum(1, keepdim=True) * (length > SMALLEST)
            out[:, :, part] = (grad - unit * along) / length
        return out, None, None


def parts_of(x: Clips) -> list[slice]:
    """Frames that are looked at together."""
    n_frames = x.shape[2]
    step = max(1, ENTRIES * n_frames // max(x.numel(), 1))
    return [slice(start, start + step) for start in range(0, n_frames, step)]


def direction(x: Clips) -> tuple[Clips, Float[Tensor, "B 1 _ _ _"]]:
    """x / |x| and |x| over the channels; at half precision both in float32."""
    wide = x.float() if x.element_size() < 4 else x
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp(min=SMALLEST)
    return wide / length, length


def norm_silu(norm: Block, x: Clips) -> Clips:
    """diffusers' WanRMS_norm and the activation behind it."""
    fast = rms_norm_cuda.fits(x, norm.gain)
    return (rms_norm_cuda.CudaNormSilu if fast else NormSilu).apply(x, norm.gain, norm.offset)


class FirstConvolution(torch.autograd.Function):
    """FrozenConvolution, of stride 1, of a clip behind as many frames of zeros as it looks back.

    They get no gradient, so none is made for them.
    """

    @staticmethod
    def forward(ctx, x, weight, turned, bias, options):
        ctx.save_for_backward(turned)
        ctx.sides = options[1][1:]
        return F.conv3d(after_zeros(x, weight.shape[2] - 1), weight, bias, *options)

    @staticmethod
    def backward(ctx, *grads):
        (turned,) = ctx.saved_tensors
        back, *kernel = (k - 1 for k in turned.shape[2:])
        # as many zeros behind: the turned convolution then begins at the clip's first frame
        grad = F.pad(grads[0], (0, 0, 0, 0, 0, back))
        sides = [k - p for k, p in zip(kernel, ctx.sides, strict=True)]
        return F.conv3d(grad, turned, padding=(0, *sides)), None, None, None, None


def after_zeros(x: Clips, n: int) -> Clips:
    """x behind n frames of zeros."""
    return F.pad(x, (0, 0, 0, 0, n, 0))


# ------------------------------------------------------------------ blocks


def convolve(conv: Block, x: Clips, past: Past) -> Clips:
    """diffusers' WanCausalConv3d: zeros around a frame, the frames before it in time."""
    width, _, height, _, before, _ = conv._padding
    options = (conv.stride, (0, height, width), conv.dilation, conv.groups)
    if before and past.first:
        past.keep(x, before)
        if conv.turned is not None and before == conv.kernel_size[0] - 1:
            return FirstConvolution.apply(x, conv.weight, conv.turned, conv.bias, options)
        x = after_zeros(x, before)
    elif before:
        x = past.joined(x, before)
    return FrozenConvolution.apply(x, conv.weight, conv.turned, conv.bias, options)


def residual(block: Block, x: Clips, past: Past) -> Clips:
    y = convolve(block.conv1, norm_silu(block.norm1, x), past)
    y = convolve(block.conv2, norm_silu(block.norm2, y), past)
    if isinstance(block.conv_shortcut, nn.Identity):
        return y + x
    return y + convolve(block.conv_shortcut, x, past)


def attention(block: Block, x: Clips) -> Clips:
    """Among a frame's pixels."""
    frames = x.transpose(1, 2).flatten(0, 1)
    q, k, v = block.to_qkv(block.norm(frames)).flatten(2).mT.chunk(3, dim=-1)
    out = MatrixAttention.apply(q, k, v, q.shape[-1] ** -0.5)
    out = block.proj(out.mT.unflatten(2, frames.shape[2:]))
    return x + out.unflatten(0, (len(x), -1)).transpose(1, 2)


def resample(block: Block, x: Clips, past: Past) -> Clips:
    """Half the pixels, then half the frames behind the clip's first one, which stays."""
    if block.mode not in ("downsample2d", "downsample3d"):
        raise ValueError(f"An encoder's WanResample has the mode {block.mode!r}: it can't be read.")
    frames = halve(block.resample[1], x.transpose(1, 2).flatten(0, 1))
    x = frames.unflatten(0, (len(x), -1)).transpose(1, 2)
    if block.mode == "downsample2d":
        return x
    if not past.first:
        x = past.joined(x, 1)
        return convolve(block.time_conv, x, past)
    past.keep(x, 1)
    first = x[:, :, :1]
    return first if x.shape[2] == 1 else torch.cat([first, convolve(block.time_conv, x, past)], 2)


def down(block: Block, x: Clips, past: Past) -> Clips:
    """A block of the encoder, by its class."""
    kind = type(block).__name__
    if kind == "WanResidualBlock":
        return residual(block, x, past)
    if kind == "WanResample":
        return resample(block, x, past)
    if kind != "WanResidualDownBlock":
        raise ValueError(f"Wan's VAE has a {kind}: it is of a newer diffusers than is known here.")
    y = x
    for resnet in block.resnets:
        y = residual(resnet, y, past)
    if block.downsampler is not None:
        y = resample(block.downsampler, y, past)
    return y + averaged(block.avg_shortcut, x)


def averaged(block: Block, x: Clips) -> Clips:
    """diffusers' AvgDown3D: means over squares of pixels, neighbouring frames as channels; where
    it only does that, channels stay innermost."""
    side, n = block.factor_s, block.factor_t
    if block.group_size != side**2:
        return block(x)
    lacking = -x.shape[2] % n
    x = after_zeros(x, lacking) if lacking else x
    means = F.avg_pool2d(x.transpose(1, 2).flatten(0, 1), side).unflatten(0, (len(x), -1, n))
    means = means.permute(0, 1, 4, 5, 3, 2).flatten(4)  # [B f h w, and channels with their frames]
    return means.permute(0, 4, 1, 2, 3)


def encode_part(encoder: Block, keeps: bool, x: Clips, *seen: Tensor) -> tuple[Tensor, ...]:
    """The encoder's answer for frames of a clip, and what its convolutions saw last.

    seen: that of the part before; nothing: these are the first frames.
    """
    past = Past(seen or None, keeps)
    x = convolve(encoder.conv_in, x, past)
    for block in encoder.down_blocks:
        x = down(block, x, past)
    mid = encoder.mid_block
    x = residual(mid.resnets[0], x, past)
    for attn, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        x = residual(resnet, x if attn is None else attention(attn, x), past)
    x = convolve(encoder.conv_out, norm_silu(encoder.norm_out, x), past)
    return x, *past.kept


# ------------------------------------------------------------------ the VAE


def slim(vae: Block, decodes: bool = False) -> Block:
    """Makes a frozen AutoencoderKLWan ready for `moments`, in place; drops its decoder, unless it
    is to decode."""
    decoder = vae.decoder, vae.post_quant_conv
    vae.decoder = vae.post_quant_conv = None
    innermost = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for kind, memory_format in innermost.items():
        for conv in vae.modules():
            if isinstance(conv, kind) and conv.weight.is_cuda:
                conv.to(memory_format=memory_format)
    turn_over(m for m in vae.encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    convolutions: list[Block] = [m for m in vae.modules() if isinstance(m, nn.Conv3d)]
    for conv in convolutions:
        conv.register_buffer("turned", turn(conv), persistent=False)
    norms: list[Block] = [m for m in vae.modules() if type(m).__name__ == "WanRMS_norm"]
    for norm in norms:
        wide = torch.promote_types(norm.gamma.dtype, torch.float32)
        gain = norm.gamma.to(wide) * norm.scale
        norm.register_buffer("gain", gain, persistent=False)
        norm.register_buffer("offset", torch.zeros_like(gain) + norm.bias, persistent=False)
    if decodes:
        vae.decoder, vae.post_quant_conv = decoder
    return vae


def moments(
    vae: Block, pixels: Float[Tensor, "B 3 F H W"], chunk: int = 0
) -> Float[Tensor, "B C f h w"]:
    """Mean and log variance of the posterior, one behind the other, of clips in [-1, 1].

    chunk: frames, a multiple of the VAE's temporal factor, that are encoded at once behind the
        first one; 0: all.
    """
    x = patches(pixels, vae.config.patch_size or 1).flip(3, 4)
    first = 1 + chunk if chunk else x.shape[2]
    parts = [x[:, :, :first], *x[:, :, first:].split(chunk or 1, dim=2)]
    parts = [part for part in parts if part.shape[2]]
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    encoded, seen = [], ()
    for part in parts[:-1]:
        encode = partial(encode_part, vae.encoder, True)
        answer, *seen = checkpoint(encode, part, *seen, **options)
        encoded.append(answer)
    encoded.append(encode_part(vae.encoder, False, parts[-1], *seen)[0])
    latents = torch.cat(encoded, dim=2).flip(3, 4)
    return convolve(vae.quant_conv, latents, Past(None, keeps=False))


def patches(pixels: Float[Tensor, "B c F H W"], size: int) -> Clips:
    """Pixels of size x size squares as channels: colour, then column, then row."""
    if size == 1:
        return pixels
    x = pixels.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [B c F h p w q]
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
