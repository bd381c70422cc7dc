"""The kernels between convolutions and attention, as C++: torch's own operations are the reference.

Tests on a GPU are those of what uses them: test_frozen_unet.py and test_frozen_vae.py."""

import pytest
import torch
import torch.nn.functional as F
from animate124.guidance import channels_cuda

from host_kernels import run_on_host

IMAGES, ROWS, NUMBERS, OUT = "const Eight*", "int", "const float*", "float*"
OFFSET = ["const unsigned short*", "int"]
JOINED = [IMAGES, "Eight*", "int", "Eight*"]
SCALED = [NUMBERS, IMAGES, IMAGES, *OFFSET]
NORM = {  # the types of their arguments
    "partial_moments": [IMAGES, ROWS, *OFFSET, OUT],
    "finish_moments": ["const unsigned short*", ROWS, NUMBERS, "int", "float", *OFFSET, OUT],
    "apply": [IMAGES, ROWS, *SCALED, "int", "Eight*"],
    "partial_gradient": [IMAGES, IMAGES, ROWS, *SCALED, "int", OUT],
    "finish_gradient": [ROWS, NUMBERS, "int", NUMBERS, OUT],
    "apply_gradient": [IMAGES, IMAGES, ROWS, *SCALED, NUMBERS, "int", *JOINED],
}
OTHERS = {
    "add_bias": ["Eight*", ROWS, IMAGES],
    "plus": [IMAGES, IMAGES, ROWS, IMAGES, "Eight*"],
    "geglu": [IMAGES, ROWS, "Eight*"],
    "geglu_gradient": [IMAGES, IMAGES, ROWS, "Eight*"],
    "layer_norm": [IMAGES, IMAGES, ROWS, IMAGES, IMAGES, "float", "Eight*", OUT, "Eight*"],
    "layer_norm_gradient": [IMAGES, IMAGES, IMAGES, ROWS, IMAGES, NUMBERS, "Eight*"],
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Puts kernels on the host, whose blocks have few threads there."""
    monkeypatch.setattr(channels_cuda, "THREADS", 64)
    torch.manual_seed(0)
    return lambda kernels: run_on_host(monkeypatch, channels_cuda, tmp_path, kernels, talking=True)


def images(*shape):
    return torch.randn(shape).half().contiguous(memory_format=torch.channels_last)


def gradient(norm, x, *slopes):
    """Of the results' products with these slopes."""
    return gradients(norm, [x], *slopes)[0]


def gradients(norm, parts, *slopes):
    own = [part.detach().requires_grad_() for part in parts]
    results = norm(*own)
    results = results if isinstance(results, tuple) else (results,)
    pairs = zip(results, slopes, strict=True)
    return torch.autograd.grad([(y * slope.to(y)).sum() for y, slope in pairs], own)


def assert_near(half, exact):
    assert (half - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize(
    ("channels", "groups", "offsets", "silu"),  # offsets: images that the offset has
    [(16, 4, None, True), (24, 2, 1, True), (64, 1, 2, False), (40, 5, 2, True)],
)
def test_the_group_norm_and_its_gradient_are_torchs(run, channels, groups, offsets, silu):
    run(NORM)
    x = 3 * images(2, channels, 9, 15) + torch.linspace(-9, 20, channels)[:, None, None].half()
    weight, bias = torch.randn(2, channels).half()
    offset = None if offsets is None else 5 * torch.randn(offsets, channels).half()

    def ours(own):
        return channels_cuda.CudaNormSilu.apply(own, weight, bias, groups, 1e-5, silu, offset)

    def theirs(own):
        shifted = own if offset is None else own + offset[:, :, None, None]
        normed = F.group_norm(shifted, groups, weight.double(), bias.double(), 1e-5)
        return F.silu(normed) if silu else normed

    assert_near(ours(x), theirs(x.double()))
    slopes = images(*x.shape)
    assert_near(gradient(ours, x, slopes), gradient(theirs, x.double(), slopes))


def test_many_blocks_sum_a_pixel_far_from_the_others(run):
    """Sums are of differences from the first pixel, which here is none like them."""
    run(NORM)
    x = images(1, 64, 40, 50)
    x[..., 0, 0] = 60
    weight, bias = torch.randn(2, 64).half()
    assert channels_cuda.Sizes(x, 2).blocks > 32  # more than one warp sums up
    found = channels_cuda.CudaNormSilu.apply(x, weight, bias, 2, 1e-5, False, None)
    assert_near(found, F.group_norm(x.double(), 2, weight.double(), bias.double(), 1e-5))


@pytest.mark.parametrize("widths", [[16], [24, 8], [8, 40]])
def test_a_gradient_from_elsewhere_is_added(run, widths):
    """Of an image, or of two with their channels behind each other, each with a gradient of its
    own."""
    run(NORM)
    parts = [images(2, width, 7, 5) for width in widths]
    weight, bias = torch.randn(2, sum(widths)).half()
    slopes, elsewhere = images(2, sum(widths), 7, 5), images(2, sum(widths), 7, 5)

    def ours(*own):
        return channels_cuda.CudaForkedNormSilu.apply(weight, bias, 4, 1e-5, True, *own)

    def theirs(*own):
        x = torch.cat(own, 1)
        return F.silu(F.group_norm(x, 4, weight.double(), bias.double(), 1e-5)), x

    found = gradients(ours, parts, slopes, elsewhere)
    exact = gradients(theirs, [part.double() for part in parts], slopes, elsewhere)
    for half, part in zip(found, exact, strict=True):
        assert half.is_contiguous(memory_format=torch.channels_last)
        assert_near(half, part)


@pytest.mark.parametrize("channels", [8, 24, 160])
def test_sums_and_geglu_are_theirs(run, channels):
    run(OTHERS)
    x, y, bias = images(2, channels, 9, 11), images(2, channels, 9, 11), torch.randn(channels)
    added = bias.half()
    total = x.float() + added[:, None, None]
    torch.testing.assert_close(
        channels_cuda.CudaPlus.apply(x, y, added[None]), (total + y.float()).half()
    )
    channels_cuda.add_bias(x, added)
    torch.testing.assert_close(x, total.half())
    tokens, slopes = torch.randn(2, 7, 2 * channels).half(), torch.randn(2, 7, channels).half()

    def theirs(own):
        values, gates = own.chunk(2, dim=-1)
        return values * F.gelu(gates)

    assert_near(channels_cuda.CudaGeglu.apply(tokens), theirs(tokens.double()))
    found = gradient(channels_cuda.CudaGeglu.apply, tokens, slopes)
    assert_near(found, gradient(theirs, tokens.double(), slopes))


@pytest.mark.parametrize(
    ("channels", "adds"),  # so many threads share a row's gradient: 1, 2, 16 and 32
    [(24, True), (64, False), (328, False), (328, True), (1288, True)],
)
def test_the_layer_norm_and_its_gradient_are_torchs(run, channels, adds):
    run(OTHERS)
    x, added, slopes, elsewhere = torch.randn(4, 3, 7, channels).half()
    weight, bias = torch.randn(2, channels).half()
    other = added if adds else None

    def ours(own):
        return channels_cuda.CudaLayerNorm.apply(own, other, weight, bias, 1e-5)

    def theirs(own):
        total = own + added if adds else own
        return total, F.layer_norm(total, (channels,), weight.double(), bias.double(), 1e-5)

    for half, exact in zip(ours(x), theirs(x.double()), strict=True):
        assert_near(half, exact)
    found = gradient(ours, x, elsewhere, slopes)
    assert_near(found, gradient(theirs, x.double(), elsewhere, slopes))
