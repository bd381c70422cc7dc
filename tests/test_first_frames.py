"""The picture as a condition: when it is a clip's first frame, and what is shown instead."""

import numpy as np
import pytest
import threestudio
import torch
from animate124.data.reference_image import reference
from animate124.guidance.first_frames import starts_at
from PIL import Image

from guidance_table import FixedPrompt, watch

PLACE = 10.0, 350.0, 2.5  # elevation, azimuth, distance


def clips_at(elevation=10.0, azimuth=-10.0, distance=2.5, tau=0.0, n=2, frames=3):
    """A batch of clips that begin there; the camera drifts and time runs on."""
    later = torch.arange(frames).repeat(n)
    start = {"elevation": elevation, "azimuth": azimuth, "camera_distances": distance}
    batch = {key: torch.full((n * frames,), value) for key, value in start.items()}
    batch["azimuth"] += 5.0 * later
    return batch | {"frame_times": tau + 0.1 * later, "num_frames": frames}


def test_a_clip_starts_with_the_picture_at_time_zero_from_its_camera():
    assert starts_at(clips_at(), 2, PLACE).tolist() == [True, True]
    for other in ({"elevation": 11.0}, {"azimuth": 10.0}, {"distance": 2.6}, {"tau": 1 / 256}):
        assert starts_at(clips_at(**other), 2, PLACE).tolist() == [False, False]
    mixed = clips_at()
    mixed["frame_times"][3] = 0.5
    assert starts_at(mixed, 2, PLACE).tolist() == [True, False]
    turned = clips_at(azimuth=-10.0 + 720)
    assert starts_at(turned, 2, PLACE).all()
    del mixed["frame_times"]  # threestudio's own batches
    assert not starts_at(mixed, 2, PLACE).any()


@pytest.fixture(scope="module")
def build(random_priors, tmp_path_factory):
    picture = tmp_path_factory.mktemp("picture") / "_rgba.png"
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 8:40] = (200, 100, 50, 255)
    Image.fromarray(rgba).save(picture)

    def build(**changes):
        config = {
            "pretrained_model_name_or_path": str(random_priors / "text-to-video"),
            "unet_name_or_path": str(random_priors / "image-to-video"),
            "width": 64,
            "height": 32,
            "cond_image_path": str(picture),
            "cond_elevation_deg": PLACE[0],
            "cond_azimuth_deg": PLACE[1],
        }
        return threestudio.find("animate124-image-to-video-guidance")(config | changes)

    return build


def test_the_network_is_shown_the_picture_where_a_clip_starts_with_it(build):
    """On white, in the shape of the clip's frames; the other clip's is what was rendered."""
    prior, rgb, batch = build(), torch.rand(6, 32, 64, 3), clips_at()
    batch["frame_times"][3:] += 0.5
    seen = watch(prior, rgb, FixedPrompt(), **batch)
    picture, _ = reference(prior.cfg.cond_image_path, 32, 64)
    for clip, frame in enumerate((picture, rgb[3])):
        with torch.no_grad():
            first = prior.codec.encode(frame.permute(2, 0, 1)[None], mode=True)[0]
        for half in seen.network["sample"][:, 4:].unflatten(0, (2, 2))[:, clip]:
            torch.testing.assert_close(half, first[:, None].expand_as(half))


def test_without_a_picture_the_rendered_frame_is_shown(build):
    prior, rgb = build(cond_image_path=None), torch.rand(6, 32, 64, 3)
    shown = prior.shown_frames(rgb.permute(0, 3, 1, 2).unflatten(0, (2, 3)), clips_at())
    assert torch.equal(shown, rgb[::3].permute(0, 3, 1, 2)) and not shown.requires_grad


def test_a_model_that_needs_a_first_frame_can_not_go_without(build):
    with pytest.raises(ValueError, match=r"first_frame is 'none', but has to be rendered"):
        build(first_frame="none")


def test_none_is_shown_but_where_all_clips_start_with_the_picture(build):
    prior, clips = build(), torch.rand(2, 3, 3, 32, 64)
    prior.cfg.first_frame = "none"
    assert prior.first_frames(clips, clips_at(tau=0.5)) is None
    assert torch.equal(prior.first_frames(clips, clips_at()), prior.picture.expand(2, -1, -1, -1))


def test_a_picture_that_is_not_there_is_named(build):
    with pytest.raises(FileNotFoundError, match=r"nothing-here\.png"):
        build(cond_image_path="nothing-here.png")
