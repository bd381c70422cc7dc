"""Wan's encoder without what a frozen one doesn't need: diffusers' own is the reference."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from animate124.guidance import frozen_wan_vae
from animate124.guidance.frozen_wan_vae import NormSilu, Past, after_zeros, moments, slim

pytest.importorskip("diffusers", minversion="0.35")  # older ones lack Wan 2.2's VAE

import tiny_models as tiny

WIDER = {"dim_mult": [1, 2, 2, 4], "num_res_blocks": 2}
VAES = {
    "2.1": tiny.wan_vae,
    "2.2": tiny.wan_22_vae,
    "wider": functools.partial(tiny.wan_vae, **WIDER),
    "2.2, wider": functools.partial(tiny.wan_22_vae, dim_mult=(1, 2, 4, 4)),
}
every_vae = pytest.mark.parametrize("name", VAES)


@pytest.fixture(scope="module", params=VAES)
def vae(request):
    torch.manual_seed(3)
    return VAES[request.param]().double().requires_grad_(False).eval()


def clip(n_frames, side=32):
    return 2 * torch.rand(2, 3, n_frames, side, side + 16, dtype=torch.float64) - 1


def encode(function, pixels, vae):
    """Moments, the gradient of a weighted sum of them, and the bytes that the graph held."""
    pixels = pixels.clone().requires_grad_()
    own = {x.data_ptr() for x in (*vae.parameters(), *vae.buffers())}
    held = {}

    def count(saved):
        if saved.data_ptr() not in own:
            held[saved.data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        answer = function(pixels)
    ramp = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view_as(answer)
    (answer * ramp).sum().backward()
    return answer.detach(), pixels.grad, sum(held.values())


def plain(vae):
    return lambda pixels: vae.encode(pixels).latent_dist.parameters


@pytest.mark.parametrize("n_frames", [1, 5, 13])
def test_a_clip_at_once_has_the_moments_and_the_gradient_of_diffusers(vae, n_frames):
    pixels, ours = clip(n_frames), slim(copy.deepcopy(vae))
    expected, gradient, held = encode(plain(vae), pixels, vae)
    answer, own_gradient, own_held = encode(lambda x: moments(ours, x), pixels, ours)
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-9, atol=1e-11)
    assert gradient.abs().amax((0, 1, 3, 4)).gt(0).all() and own_held < 0.3 * held


@pytest.mark.parametrize("chunk", [4, 8, 16])
def test_in_parts_it_is_the_same(vae, chunk):
    pixels, ours = clip(13, 16), slim(copy.deepcopy(vae))
    expected, gradient, _ = encode(lambda x: moments(ours, x), pixels, ours)
    answer, own_gradient, _ = encode(lambda x: moments(ours, x, chunk), pixels, ours)
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-9, atol=1e-11)


def test_in_parts_it_holds_less():
    ours = slim(VAES["wider"]().double().requires_grad_(False))
    held = [encode(lambda x, n=n: moments(ours, x, n), clip(17), ours)[2] for n in (0, 8)]
    assert held[1] < 0.7 * held[0]


@pytest.mark.parametrize("entries", [2**24, 1])
def test_norm_and_activation_are_made_anew(monkeypatch, entries):
    """Where all channels are 0, too."""
    monkeypatch.setattr(frozen_wan_vae, "ENTRIES", entries)
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    x[0, :, 1, 2] = 0
    x.requires_grad_()
    gain, bias = torch.randn(2, 6, 1, 1, 1, dtype=torch.float64)

    def exact(x):
        return F.silu(F.normalize(x, dim=1) * gain + bias)

    torch.testing.assert_close(NormSilu.apply(x, gain, bias), exact(x))
    grads = [
        torch.autograd.grad((f(x) * torch.linspace(-1, 1, 5, dtype=x.dtype)).sum(), x)[0]
        for f in (exact, lambda x: NormSilu.apply(x, gain, bias))
    ]
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("n_clips", [1, 2])
def test_between_convolutions_channels_stay_innermost(n_clips):
    innermost = {"memory_format": torch.channels_last_3d}
    x = torch.randn(n_clips, 6, 3, 4, 5).contiguous(**innermost)
    past = Past([x[:, :, -2:]], keeps=True)
    joined, zeros = past.joined(x, 2), after_zeros(x, 2)
    first = Past(None, keeps=True)
    first.keep(x[:, :, :1], 2)
    for clips in (joined, zeros, *past.kept, *first.kept):
        assert clips.is_contiguous(**innermost)
    assert torch.equal(past.kept[0], x[:, :, -2:]) and torch.equal(joined[:, :, 2:], x)
    assert torch.equal(first.kept[0], after_zeros(x[:, :, :1], 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_at_half_precision_it_is_as_exact_as_diffusers(vae, dtype):
    pixels = clip(5)
    exact, gradient, _ = encode(plain(vae), pixels, vae)
    half = copy.deepcopy(vae).to(dtype)
    errors = []
    for function in (plain(half), lambda x: moments(slim(copy.deepcopy(half)), x)):
        answer, own, _ = encode(lambda x, f=function: f(x.to(dtype)).double(), pixels, half)
        errors.append([(a - b).norm() / b.norm() for a, b in ((answer, exact), (own, gradient))])
    theirs, ours = errors
    assert ours[0] < 1.2 * theirs[0] and ours[1] < 1.2 * theirs[1]


def test_a_mode_that_is_not_known_is_named(vae):
    ours = slim(copy.deepcopy(vae))
    layer = next(m for m in ours.encoder.modules() if type(m).__name__ == "WanResample")
    layer.mode = "downsample4d"
    with pytest.raises(ValueError, match=r"downsample4d.*can't be read"):
        moments(ours, clip(1))
