"""Conditions: what a network sees, and which part of the gradient it answers for."""

import torch
from animate124.guidance.conditions import both, noised_part, or_nothing, shown, with_clean_part


def test_halves():
    x = torch.randn(2, 3)
    assert torch.equal(both(x), torch.stack([x, x]).flatten(0, 1))
    assert torch.equal(or_nothing(x), torch.stack([x, 0 * x]).flatten(0, 1))


def test_text_alone_leaves_latents_and_time_as_they_are():
    z_t, t = torch.randn(4, 4, 8, 8), torch.arange(4)
    condition = {"tokens": torch.randn(4, 7, 16)}
    seen, at = shown(z_t, t, condition)
    assert seen is z_t and at is t
    grad = torch.randn(2, 4, 8, 8)
    assert noised_part(grad, condition) is grad and with_clean_part(grad, condition) is grad


def test_channels_stand_behind_the_latents_own():
    z_t, t, more = torch.randn(4, 4, 3, 8, 8), torch.rand(4), torch.randn(4, 5, 3, 8, 8)
    seen, at = shown(z_t, t, {"channels": more})
    assert torch.equal(seen[:, :4], z_t) and torch.equal(seen[:, 4:], more) and at is t


def test_first_frames_are_clean_at_time_zero_and_get_no_gradient():
    z_t, t, first = torch.randn(4, 4, 3, 8, 8), torch.rand(4), torch.randn(4, 4, 1, 8, 8)
    condition = {"first": first, "channels": torch.randn(4, 2, 3, 8, 8)}
    seen, at = shown(z_t, t, condition)
    assert torch.equal(seen[:, :4, :1], first) and torch.equal(seen[:, :4, 1:], z_t[:, :, 1:])
    assert torch.equal(seen[:, 4:], condition["channels"])
    assert (
        at.shape == (4, 3)
        and not at[:, 0].any()
        and torch.equal(at[:, 1:], t[:, None].expand(4, 2))
    )
    grad = noised_part(torch.full((2, 4, 3, 8, 8), torch.nan), condition)
    assert not grad[:, :, 0].any() and grad[:, :, 1:].isnan().all()
    z = torch.randn(2, 4, 3, 8, 8)
    whole = with_clean_part(z, condition)
    assert torch.equal(whole[:, :, :1], first[:2]) and torch.equal(whole[:, :, 1:], z[:, :, 1:])
