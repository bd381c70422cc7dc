"""Trajectories and the contact sheet of a result."""

import numpy as np
import pytest
import torch
from animate124.pipeline import rendering
from animate124.pipeline.rendering import ROUNDS


def test_the_camera_turns_once_while_time_runs():
    path = rendering.turning(12)
    assert len(path.azimuth) == len(path.tau) == 12 * ROUNDS
    steps = path.azimuth.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 360 / (12 * ROUNDS)))
    assert path.azimuth[0] == 0
    for part in path.tau.chunk(ROUNDS):
        torch.testing.assert_close(part, torch.linspace(0, 1, 12))


def test_one_of_camera_and_time_rests_in_the_other_videos():
    assert not rendering.resting(9).azimuth.any()
    torch.testing.assert_close(rendering.resting(9).tau, torch.linspace(0, 1, 9))
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
