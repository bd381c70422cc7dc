"""Trajectories, the contact sheet and the playback of a result."""

import argparse
import json

import numpy as np
import pytest
import torch
from animate124.pipeline import rendering
from animate124.pipeline.rendering import ROUNDS
from animate124.pipeline.request import camera_path, camera_stops
from animate124.pipeline.tasks.result import number_of_frames, parser

TAU = torch.linspace(0, 1, 12)


def test_the_camera_turns_once_while_time_runs():
    path = rendering.turning(TAU)
    assert len(path.azimuth) == len(path.tau) == 12 * ROUNDS
    steps = path.azimuth.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 360 / (12 * ROUNDS)))
    assert path.azimuth[0] == 0
    for part in path.tau.chunk(ROUNDS):
        torch.testing.assert_close(part, torch.linspace(0, 1, 12))


def test_one_of_camera_and_time_rests_in_the_other_videos():
    assert not rendering.resting(TAU).azimuth.any()
    assert torch.equal(rendering.resting(TAU).tau, TAU)
    assert not rendering.frozen(8).tau.any()
    torch.testing.assert_close(rendering.frozen(8).azimuth, torch.arange(8) * 45.0)


@pytest.mark.parametrize(("views", "times"), [(4, 5), (3, 1), (1, 2)])
def test_the_sheets_pictures_lie_in_rows_of_views_and_columns_of_times(views, times):
    path = rendering.grid(views, times)
    azimuth, tau = path.azimuth.reshape(views, times), path.tau.reshape(views, times)
    assert (azimuth == azimuth[:, :1]).all() and (tau == tau[:1]).all()
    size = rendering.THUMBNAIL
    pictures = [np.full((size, size, 3), 10 * n, np.uint8) for n in range(views * times)]
    sheet = rendering.contact_sheet(pictures, azimuth[:, 0].tolist(), tau[0].tolist())
    top, left = sheet.shape[0] - views * size, sheet.shape[1] - times * size
    for n in range(views * times):
        row, column = divmod(n, times)
        middle = sheet[top + size * row + size // 2, left + size * column + size // 2]
        assert (middle == 10 * n).all()
    labels = [sheet[:top, left:], sheet[top:, :left]]
    assert all((part < 128).any() and (part == 255).mean() > 0.8 for part in labels)


def test_thumbnails_have_one_size_whatever_was_rendered():
    small, large = (
        rendering.contact_sheet([np.zeros((h, w, 3), np.uint8)] * 2, [0.0], [0.0, 1.0])
        for h, w in ((32, 64), (320, 640))
    )
    assert small.shape == large.shape


def test_the_camera_passes_the_places_that_are_named_at_an_even_pace():
    stops = camera_stops("0,, 90,40,3.5  -90,0,2")
    assert stops == [(0, None, None), (90, 40, 3.5), (-90, 0, 2)]
    path = rendering.passing(stops, torch.linspace(0, 1, 5).repeat_interleave(5)[:-4], 10.0, 2.5)
    assert len(path.tau) == 2 * 21 and path.elevation is not None and path.distance is not None
    seen = torch.stack([path.azimuth, path.elevation, path.distance], dim=1)
    expected = torch.tensor([[0, 10, 2.5], [90, 40, 3.5], [-90, 0, 2]])
    torch.testing.assert_close(seen[[0, -1]], expected[[0, 2]])
    first, second = seen[:21].diff(dim=0), seen[21:].diff(dim=0)
    torch.testing.assert_close(first, (expected[1] - expected[0]).expand_as(first) * 2 / 41)
    torch.testing.assert_close(second, (expected[2] - expected[1]).expand_as(second) * 2 / 41)


def test_one_place_is_where_the_camera_stays():
    path = rendering.passing(camera_stops("45,,"), TAU, 10.0, 2.5)
    assert (path.azimuth == 45).all() and (path.elevation == 10).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("spin", "'spin' is not azimuth,elevation,distance, such as .*turn and rest would do too"),
        ("0,10 90,10,3", "'0,10' is not"),
        ("0,91,2", "'91' is not a finite number, -90 or more and 90 or less"),
        ("0,0,-1", "'-1' is not a finite number, 0.1 or more"),
        ("nan,0,1", "'nan' is not a finite number"),
        (" ", "it names no place"),
    ],
)
def test_a_path_that_is_none_says_what_would_be_one(text, says):
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        camera_path(text)


@pytest.mark.parametrize(
    ("words", "frames"),
    [
        ([], 48),
        (["--fps", "16"], 32),
        (["--seconds", "3"], 72),
        (["--seconds", "0.1", "--fps", "1"], 1),
        (["--seconds", "5", "--frames", "7"], 7),
    ],
)
def test_a_motion_has_the_frames_of_its_seconds(words, frames):
    needed = ["--config", "a", "--checkpoint", "b", "--out", "c"]
    assert number_of_frames(parser().parse_args([*needed, *words])) == frames


def test_what_is_said_of_the_playback_is_counted_from_its_pictures(tmp_path):
    grey = [np.full((4, 4, 3), value, np.uint8) for value in (200, 190, 240, 180)]
    for loop, end, largest in ((False, 100, 60), (True, 203, 60), (True, 245, 65)):
        steps = rendering.Steps()
        assert len(list(steps.watched(grey))) == 4
        args = argparse.Namespace(fps=2, loop=loop, camera="rest", out=tmp_path)
        rendering.write_playback(args, 4, steps, np.full((4, 4, 3), end, np.uint8))
        facts = json.loads((tmp_path / "playback.json").read_text())
        assert (facts["end_to_start"], facts["largest_step"]) == (abs(end - 200), largest)
    assert (facts["frames"], facts["fps"], facts["seconds"]) == (4, 2, 2)
