"""Codecs against the VAEs' own encoding, and their pipelines' way of normalising."""

import copy

import pytest
import torch
from animate124.guidance.codecs import CausalVideoCodec, WanCodec, check_frames
from animate124.guidance.frozen_wan_vae import slim

diffusers = pytest.importorskip("diffusers", minversion="0.33")

from tiny_models import MEAN, STD, cogvideox_vae, ltx_vae, wan_vae


def pipelines_way(name, latents):
    """As each family's image-to-video pipeline makes latents of pixels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD))
    return {
        "wan": lambda: (latents - mean) * (1 / std),
        "ltx": lambda: (latents - mean) * 0.9 / std,
        "cogvideox": lambda: 0.7 * latents,
    }[name]()


# frames of a clip, pixels of a side
SIZES = {"wan": (wan_vae, 5, 16), "ltx": (ltx_vae, 9, 32), "cogvideox": (cogvideox_vae, 5, 16)}
every_vae = pytest.mark.parametrize("name", SIZES)


@every_vae
def test_latents_are_the_pipelines_and_every_frame_has_its_gradient(name):
    make, frames, side = SIZES[name]
    codec = CausalVideoCodec(make().requires_grad_(False).eval())
    clips = torch.rand(2, frames, 3, side, side, requires_grad=True)
    latents = codec.encode_clips(clips, mode=True)
    own = codec.vae.encode((2 * clips - 1).transpose(1, 2)).latent_dist.mode()
    torch.testing.assert_close(latents, pipelines_way(name, own))
    if name == "wan":
        for chunk in (0, 4):
            slim_codec = WanCodec(slim(copy.deepcopy(codec.vae)), chunk)
            torch.testing.assert_close(slim_codec.encode_clips(clips, mode=True), latents)
            torch.manual_seed(1)
            drawn = slim_codec.encode_clips(clips)
            torch.manual_seed(1)
            torch.testing.assert_close(drawn, codec.encode_clips(clips))
    assert latents.shape[2] == (frames - 1) // codec.frame_factor + 1
    latents.square().sum().backward()
    assert clips.grad.flatten(2).abs().amax(2).gt(0).all()
    codec.check_size(width=side * 2)
    with pytest.raises(ValueError, match=rf"width is {side + 1}.*a multiple of \d+"):
        codec.check_size(width=side + 1)


@every_vae
def test_the_way_back_is_the_pipelines(name):
    make, frames, side = SIZES[name]
    vae = make().requires_grad_(False).eval()
    clips = torch.rand(2, frames, 3, side, side)
    z = vae.encode((2 * clips - 1).transpose(1, 2)).latent_dist.mode()
    decoded = vae.decode(z).sample.transpose(1, 2)[:, -frames:]
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    latents = pipelines_way(name, z)
    codec = CausalVideoCodec(vae)
    torch.testing.assert_close(codec.decode_clips(latents), expected, atol=1e-5, rtol=1e-5)
    if name == "wan":
        codec = WanCodec(slim(vae, decodes=True))
        torch.testing.assert_close(codec.decode_clips(latents), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(codec.encode_clips(clips, mode=True), latents)


def test_what_becomes_of_even_numbers_of_latent_frames():
    """diffusers' CogVideoX makes 8 frames of 2 latent ones, 9 of 3: without norms, which look at
    all of a clip, the clip of 5 is how that of 9 begins."""
    vae = cogvideox_vae().requires_grad_(False).eval()
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    codec, z = CausalVideoCodec(vae), torch.randn(1, 4, 3, 2, 2)
    shown = codec.decode_clips(z[:, :, :2])
    assert shown.std() > 0.01
    torch.testing.assert_close(shown, codec.decode_clips(z)[:, :5])


def test_a_decoder_that_takes_noise_away_is_told_that_there_is_none():
    vae = ltx_vae(timestep_conditioning=True).requires_grad_(False).eval()
    z = torch.randn(1, 4, 2, 2, 2)
    codec = CausalVideoCodec(vae)
    expected = (vae.decode(z, temb=torch.zeros(1)).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    shown = codec.decode_clips(pipelines_way("ltx", z))
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)


@every_vae
def test_clips_that_it_would_cut_off_are_refused_with_the_near_ones(name):
    make, _, side = SIZES[name]
    codec = CausalVideoCodec(make())
    factor = codec.frame_factor
    for wrong in (factor, factor + 2, 0):
        low = (wrong - 1) // factor * factor + 1 if wrong else 1
        with pytest.raises(ValueError, match=rf"num_frames={low} or {low + factor}\."):
            codec.encode_clips(torch.rand(1, wrong, 3, side, side))
    check_frames(1, factor)
