"""Laws of the frame times of a clip."""

import pytest
import torch
from animate124.data.frame_times import played, sample_frame_times
from hypothesis import assume, given, settings
from hypothesis import strategies as st

law = settings(deadline=None, max_examples=100)
rates = st.floats(0, 1)


def rng(seed):
    return torch.Generator().manual_seed(seed)


@law
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from(["fps", "t0", None]),
    rates,
    rates,
    st.integers(0, 2**31),
)
def test_times_increase_evenly_within_0_and_1(num_frames, precision, mode, zero, mirror, seed):
    assume(num_frames <= precision)
    clip = sample_frame_times(
        num_frames,
        mode,
        precision=precision,
        zero_rate=zero,
        mirror_rate=mirror,
        generator=rng(seed),
    )
    times = clip.tau.double()
    assert len(times) == num_frames
    assert times.min() >= 0 and times.max() <= 1
    steps = times.diff()
    assert (steps > 0).all()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-6, rtol=0)
    if clip.starts_from_zero:
        assert times[0] == 0
    if mode == "fps":
        moments = times * precision
        torch.testing.assert_close(moments, moments.round(), atol=1e-3, rtol=0)
        stride = int(moments.diff()[0].round()) if num_frames > 1 else 1
        assert num_frames <= num_frames * stride <= precision


@law
@given(st.integers(1, 40), st.integers(40, 300), st.integers(0, 2**31))
def test_a_mirrored_clip_is_the_clip_played_from_the_end(num_frames, precision, seed):
    options = {"precision": precision, "zero_rate": 0.3}
    plain = sample_frame_times(num_frames, mirror_rate=0.0, generator=rng(seed), **options)
    mirrored = sample_frame_times(num_frames, mirror_rate=1.0, generator=rng(seed), **options)
    torch.testing.assert_close(mirrored.tau, 1 - plain.tau.flip(0))
    assert not mirrored.starts_from_zero
    assert plain.starts_from_zero == (plain.tau[0] == 0)


def draws(n, **options):
    generator = rng(0)
    return [sample_frame_times(16, generator=generator, **options) for _ in range(n)]


def test_share_of_clips_from_zero_is_the_rate_plus_those_that_fall_there_by_chance():
    # a clip of stride k has 257 - 16 k starts to choose from, and k is uniform in 1..16
    chance = sum(1 / (257 - 16 * k) for k in range(1, 17)) / 16
    for zero_rate, mirror_rate, n in ((0.2, 0.5, 1000), (0, 0, 1000), (1, 0, 50), (1, 1, 50)):
        got = draws(n, zero_rate=zero_rate, mirror_rate=mirror_rate)
        share = sum(clip.starts_from_zero for clip in got) / len(got)
        want = (zero_rate + (1 - zero_rate) * chance) * (1 - mirror_rate)
        assert share == pytest.approx(want, abs=0.025)


def test_strides_are_uniform_and_starts_reach_both_ends():
    clips = draws(1500, zero_rate=0.0, mirror_rate=0.0)
    strides = torch.tensor([(c.tau[1] - c.tau[0]) * 256 for c in clips]).round().int()
    counts = torch.bincount(strides, minlength=17)
    assert counts[0] == 0 and len(counts) == 17
    torch.testing.assert_close(
        counts[1:] / len(clips), torch.full((16,), 1 / 16), atol=0.025, rtol=0
    )
    shortest = torch.tensor([c.tau[0] for c, k in zip(clips, strides, strict=True) if k == 1])
    assert shortest.min() * 256 < 12 and shortest.max() * 256 > 228
    longest = [c.tau for c, k in zip(clips, strides, strict=True) if k == 16]
    assert all(torch.equal(t, torch.arange(16) / 16) for t in longest)


def test_modes_beside_fps():
    whole = sample_frame_times(5, None)
    torch.testing.assert_close(whole.tau, torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    assert whole.starts_from_zero
    clips = [sample_frame_times(4, "t0", zero_rate=0.3, generator=rng(s)) for s in range(200)]
    offsets = torch.stack([clip.tau for clip in clips])
    torch.testing.assert_close(offsets.diff(), torch.full((200, 3), 0.25))
    assert offsets[:, 0].min() == 0 and 0.24 < offsets[:, 0].max() <= 0.25
    from_zero = [clip.starts_from_zero for clip in clips]
    assert from_zero == (offsets[:, 0] == 0).tolist() and 40 < sum(from_zero) < 80


def test_a_clip_that_cannot_be_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="at least 1 frame, and num_frames is 0"):
        sample_frame_times(0)
    with pytest.raises(ValueError, match=r"257 frames .* frame_precision = 256.* at least 257"):
        sample_frame_times(257)
    with pytest.raises(ValueError, match="mode 'random': give 'fps', 't0' or null"):
        sample_frame_times(4, "random")
    assert len(sample_frame_times(256).tau) == 256
    assert len(sample_frame_times(257, None).tau) == 257  # precision is fps's


@pytest.mark.parametrize("frames", [1, 2, 48])
def test_a_loop_stops_a_step_short_of_the_end_that_is_its_start(frames):
    assert torch.equal(played(frames), torch.linspace(0, 1, frames))
    once, twice = played(frames, loop=True), played(2 * frames, loop=True)
    assert once[0] == 0 and torch.equal(twice[::2], once)
    steps = torch.cat([once, torch.ones(1)]).diff()  # the step over the seam is one of them
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / frames))
