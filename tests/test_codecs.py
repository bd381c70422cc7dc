"""Codecs against the VAEs' own encoding, and their pipelines' way of normalising."""

import pytest
import torch
from animate124.guidance.codecs import CausalVideoCodec

diffusers = pytest.importorskip("diffusers", minversion="0.33")

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [2.0, 1.5, 0.7, 1.0]


def wan():
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=MEAN,
        latents_std=STD,
    )


def ltx():
    widths, layers = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=layers,
        decoder_layers_per_block=layers,
        scaling_factor=0.9,
    )
    vae.latents_mean.copy_(torch.tensor(MEAN))
    vae.latents_std.copy_(torch.tensor(STD))
    return vae


def cogvideox():
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def pipelines_way(name, latents):
    """As each family's image-to-video pipeline makes latents of pixels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD))
    return {
        "wan": lambda: (latents - mean) * (1 / std),
        "ltx": lambda: (latents - mean) * 0.9 / std,
        "cogvideox": lambda: 0.7 * latents,
    }[name]()


# frames of a clip, pixels of a side
SIZES = {"wan": (wan, 5, 16), "ltx": (ltx, 9, 32), "cogvideox": (cogvideox, 5, 16)}
every_vae = pytest.mark.parametrize("name", SIZES)


@every_vae
def test_latents_are_the_pipelines_and_every_frame_has_its_gradient(name):
    make, frames, side = SIZES[name]
    codec = CausalVideoCodec(make().requires_grad_(False).eval())
    clips = torch.rand(2, frames, 3, side, side, requires_grad=True)
    latents = codec.encode_clips(clips, mode=True)
    own = codec.vae.encode((2 * clips - 1).transpose(1, 2)).latent_dist.mode()
    torch.testing.assert_close(latents, pipelines_way(name, own))
    assert latents.shape[2] == (frames - 1) // codec.frame_factor + 1
    latents.square().sum().backward()
    assert clips.grad.flatten(2).abs().amax(2).gt(0).all()
    codec.check_size(width=side * 2)
    with pytest.raises(ValueError, match=rf"width is {side + 1}.*a multiple of \d+"):
        codec.check_size(width=side + 1)


@every_vae
def test_clips_that_it_would_cut_off_are_refused_with_the_near_ones(name):
    make, _, side = SIZES[name]
    codec = CausalVideoCodec(make())
    factor = codec.frame_factor
    for wrong in (factor, factor + 2, 0):
        low = (wrong - 1) // factor * factor + 1 if wrong else 1
        with pytest.raises(ValueError, match=rf"num_frames={low} or {low + factor}\."):
            codec.encode_clips(torch.rand(1, wrong, 3, side, side))
    codec.check_frames(1)
