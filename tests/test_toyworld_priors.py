"""The banks and the trainer of the toy priors, and the priors that are shipped."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import animate124
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.guidance.codecs import CausalVideoCodec
from animate124.guidance.noise import RectifiedFlow
from animate124.guidance.zero123_model import camera_offset
from animate124.pretrained.models import load_component
from animate124.toyworld import (
    banks,
    captions,
    folders,
    networks,
    recipes,
    rectified_flow,
    train,
)
from animate124.toyworld.characters import SPECIES, make_character
from animate124.toyworld.clip_coder import ClipCoder
from animate124.toyworld.motions import MOTIONS
from animate124.toyworld.plan import TINY
from animate124.toyworld.ray_tracing import render
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    UNet3DConditionModel,
    WanTransformer3DModel,
)

SHIPPED = Path(animate124.__file__).parent / "load" / "toy-priors"


@pytest.mark.parametrize(
    ("elevation", "azimuth", "word"),
    [(0, 0, "front"), (0, 44, "front"), (0, -46, "side"), (0, 180, "back"), (0, -136, "back"),
     (0, 314, "side"), (0, 316, "front"), (61, 0, "overhead")],
)  # fmt: skip
def test_a_view_has_the_word_that_prompts_use(elevation, azimuth, word):
    assert captions.view(elevation, azimuth) == word


def test_captions_are_spelt_from_known_words():
    dice = random.Random(0)
    for species in SPECIES:
        for motion in (None, *MOTIONS):
            text = captions.caption(species, motion, 0, 0, dice).replace(",", "")
            assert set(text.split()) <= set(captions.WORDS)


def test_banks_follow_from_their_seed_and_keep_characters_apart():
    one, again, other = (
        banks.clip_bank(2, 3, size=16, seed=seed, device="cpu") for seed in (1, 1, 2)
    )
    assert torch.equal(one.images, again.images) and one.captions == again.captions
    assert not torch.equal(one.images, other.images)
    views = banks.view_bank([banks.HELD_OUT], 2, size=16, seed=0, device="cpu")
    assert views.reference.shape == (1, 3, 16, 16) and views.views.shape == (1, 2, 3, 16, 16)


def test_the_reference_view_of_a_bank_is_the_reference_cameras():
    camera = Cameras.of().batch(16, 16)
    looks = torch.stack(
        [render(make_character(s, 5).at_rest(), camera, supersample=2)["rgb"][0] for s in SPECIES]
    ).permute(0, 3, 1, 2)
    shown = torch.cat(
        [banks.view_bank([5], 1, size=16, seed=s, device="cpu").reference for s in range(6)]
    )
    off = (looks[None] - shown[:, None] / 255).abs().flatten(2).amax(2)  # [bank, species]
    assert (off.amin(1) <= 0.5 / 255 + 1e-6).sum() >= 3  # three in four scenes are at rest


def test_training_gives_zero123_the_numbers_that_its_guidance_gives():
    elevation, azimuth = torch.tensor([-30.0, 10.0]), torch.tensor([200.0, -20.0])
    distance = torch.full((2,), 2.5)
    torch.testing.assert_close(
        recipes.camera_offset(elevation, azimuth),
        camera_offset(elevation, azimuth, distance, (0.0, 0.0, 2.5)),
    )


def test_a_tiny_training_writes_folders_that_the_loaders_read_and_goes_on(tmp_path):
    train.main(["--out", str(tmp_path), "--tiny", "--device", "cpu"])
    first = load_component(AutoencoderKL, str(tmp_path / "sd"), "vae").state_dict()
    log = (tmp_path / "log.csv").read_text()
    train.main(["--out", str(tmp_path), "--tiny", "--device", "cpu"])  # all parts are done
    assert (tmp_path / "log.csv").read_text() == log
    second = load_component(AutoencoderKL, str(tmp_path / "sd"), "vae").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    shutil.copytree(tmp_path / "text-to-video", tmp_path / "again" / "text-to-video")
    options = ["--tiny", "--device", "cpu", "--only", "image-to-video"]
    train.main(["--out", str(tmp_path / "again"), *options])
    for out in (tmp_path, tmp_path / "again"):
        seeing = load_component(
            UNet3DConditionModel, str(out / "image-to-video"), "", torch.float32
        )
        assert seeing.config.in_channels == 8 and seeing.conv_in.weight[:, 4:].abs().max() > 0
        assert "clip_psnr_cfg2" in json.loads((out / "quality.json").read_text())
    train.main([*["--out", str(tmp_path / "again")], *options[:-1], "image-to-video-flow"])
    for out in (tmp_path, tmp_path / "again"):
        check_flow_folder(out / "image-to-video-flow")
        assert "flow_clip_psnr_cfg2" in json.loads((out / "quality.json").read_text())


def check_flow_folder(folder):
    """Its parts are read, and its clips are encoded and normalised as a prior does it."""
    vae = load_component(AutoencoderKLWan, str(folder), "vae", torch.float32)
    net = load_component(WanTransformer3DModel, str(folder), "transformer", torch.float32)
    assert net.config.in_channels == vae.config.z_dim == TINY.flow_latents
    images = torch.rand(2, 3, 64, 64)
    ours, theirs = ClipCoder(vae).first(images), CausalVideoCodec(vae)
    torch.testing.assert_close(ours, theirs.encode_clips(images[:, None], mode=True))
    assert theirs.pixel_factor == 8 and theirs.frame_factor == 4
    stated = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    fractions = torch.linspace(0, 1, 5)
    expected = RectifiedFlow(stated["flow_shift"]).time_at(fractions)
    torch.testing.assert_close(rectified_flow.shifted(fractions), expected)


def test_a_flow_to_known_latents_costs_nothing_and_ends_there():
    generator = torch.Generator().manual_seed(0)
    z, first = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 1, 4, 4)
    seen = torch.tensor([True, False])

    def exact(z_s, times):  # v = eps - z, and z_s - z = s (eps - z)
        assert times[0].tolist()[0] == 0 and times[1, 0] == times[1, 1] > 0
        torch.testing.assert_close(z_s[0, :, :1], first[0])
        return (z_s - z) / times[:, None, :, None, None].clamp_min(1e-6)

    loss = rectified_flow.flow_loss(exact, z, first, seen)
    torch.testing.assert_close(loss, torch.zeros(()), atol=1e-6, rtol=0)

    def nothing(z_s, times):
        return torch.zeros_like(z_s)

    options = {"scale": 1.0, "steps": 5, "generator": generator}
    ends = rectified_flow.euler(exact, nothing, tuple(z.shape), first, seen, **options)
    torch.testing.assert_close(ends[1], z[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ends[0, :, 1:], z[0, :, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ends[0, :, :1], first[0])


def test_the_video_unet_that_sees_a_picture_starts_as_the_one_that_sees_none():
    torch.manual_seed(0)
    blind = networks.make_video_unet(TINY)
    seeing = networks.make_image_video_unet(TINY, blind)
    z, t, states = torch.randn(2, 4, 2, 16, 16), torch.tensor([10, 900]), torch.randn(2, 7, 32)
    seen = recipes.beside(z, torch.randn(2, 4, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(seeing(seen, t, states).sample, blind(z, t, states).sample)
    wider = dataclasses.replace(TINY, video_channels=(32, 32, 64))  # the last level starts anew
    blind = networks.make_video_unet(wider)
    seeing = networks.make_image_video_unet(wider, blind).state_dict()
    name = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(seeing[name], blind.state_dict()[name])


def test_the_shipped_priors_are_small_and_good():
    size = sum(file.stat().st_size for file in shipped_files())
    assert size <= 79e6
    quality = json.loads((SHIPPED / "quality.json").read_text())
    assert quality["vae_psnr"] > 30 and quality["novel_view_psnr_cfg3"] > 28
    assert quality["clip_psnr_cfg2"] > quality["clip_psnr_text_only"] + 2  # the picture tells much
    assert quality["flow_clip_psnr_cfg2"] > quality["flow_clip_psnr_text_only"] + 2
    assert quality["flow_vae_psnr"] > 25


def test_the_words_that_are_said_to_be_known_are_those_of_the_shipped_tokenizer(tmp_path):
    folders.write_words(tmp_path / "words.json")
    said = json.loads((SHIPPED / "words.json").read_text())
    assert said == json.loads((tmp_path / "words.json").read_text())
    vocabulary = json.loads((SHIPPED / "sd" / "tokenizer" / "vocab.json").read_text())
    assert {f"{word}</w>" for word in said["words"]} <= vocabulary.keys()
    spoken = {word for text in said["subjects"] + said["motions"] for word in text.split()}
    assert spoken <= set(said["words"])


def shipped_files():
    return [file for file in SHIPPED.rglob("*") if file.is_file()]


def test_the_shipped_autoencoder_returns_characters_it_never_saw():
    vae = load_component(AutoencoderKL, str(SHIPPED / "sd"), "vae")
    picture = render(
        make_character("panda").at_rest(), Cameras.of(0, 30).batch(64, 64), supersample=3
    )["rgb"].permute(0, 3, 1, 2)
    with torch.no_grad():
        back = vae.decode(vae.encode(2 * picture - 1).latent_dist.mode()).sample
    assert -10 * ((back + 1) / 2 - picture).square().mean().log10() > 30
