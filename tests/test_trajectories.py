"""Laws of the test videos' camera paths."""

import torch
from animate124.data.trajectories import circle, motion_smooth
from hypothesis import given, settings
from hypothesis import strategies as st

law = settings(deadline=None, max_examples=40)


@law
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 6))
def test_every_round_plays_time_once_and_turns_its_share(num_frames, factor, rounds):
    azimuth, times = motion_smooth(num_frames, factor, rounds)
    per_round = num_frames * factor
    assert azimuth.shape == times.shape == (rounds * per_round,)
    times, azimuth = times.view(rounds, per_round), azimuth.view(rounds, per_round)
    assert (times[:, 0] == 0).all() and (times.diff() > 0).all()
    if per_round > 1:
        assert (times[:, -1] == 1).all()
    torch.testing.assert_close(azimuth[:, 0], torch.arange(rounds) * 360 / rounds)
    hold = per_round // 2
    assert (azimuth[:, : hold + 1] == azimuth[:, :1]).all()
    assert (azimuth.diff() >= 0).all()


def test_camera_turns_four_times_90_degrees_without_a_jump():
    azimuth, times = motion_smooth(16, 4)
    assert len(azimuth) == len(times) == 4 * 64
    loop = torch.cat([azimuth, azimuth[:1] + 360])  # the video may be played in a loop
    step = loop.diff()
    assert step.min() >= 0
    assert step.max() < 1.6 * 90 / 32  # a smooth step is 1.5 times as fast as an even one
    assert step.diff().abs().max() < 1.0  # speed doesn't jump: at most 1 degree a frame more
    stops = torch.tensor([azimuth[64 * r] for r in range(4)])
    torch.testing.assert_close(stops, torch.tensor([0.0, 90, 180, 270]))


@law
@given(st.integers(1, 50))
def test_circle_is_one_even_turn_through_the_whole_time(n):
    azimuth, times = circle(n)
    loop = torch.cat([azimuth, torch.tensor([360.0])])
    torch.testing.assert_close(loop.diff(), torch.full((n,), 360 / n), atol=1e-3, rtol=0)
    torch.testing.assert_close(times, torch.linspace(0, 1, n))
