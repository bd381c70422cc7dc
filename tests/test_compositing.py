"""Emission and absorption on packed samples: against a loop over rays, closed forms, gradients."""

import math

import pytest
import torch
from animate124.renderer import compositing_cuda
from animate124.renderer.compositing import (
    accumulate,
    composite,
    depth_variance,
    look,
    ray_offsets,
    render_weights,
    sieve,
    sum_before,
)

from host_kernels import run_on_host

F64 = torch.float64


def random_samples(counts, dtype=F64, density=3.0):
    """(density, t_starts, t_ends, ray_indices) with the given number of samples on each ray."""
    ray_indices = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    length = 0.01 + 0.1 * torch.rand(len(ray_indices), dtype=dtype)
    t_ends = 2 + length.cumsum(0)  # increasing along each ray is all that counts
    sigma = density * torch.rand(len(ray_indices), dtype=dtype)
    return sigma, t_ends - length, t_ends, ray_indices


def loop(density, t_starts, t_ends, ray_indices):
    """Weights as NeRF's eq. 3 says, one ray and sample at a time, in Python floats."""
    weights, light, ray = [], 1.0, -1
    for sigma, start, end, r in zip(
        density.tolist(), t_starts.tolist(), t_ends.tolist(), ray_indices.tolist(), strict=True
    ):
        if r != ray:
            light, ray = 1.0, r
        through = math.exp(-sigma * (end - start))
        weights.append(light * (1 - through))
        light *= through
    return torch.tensor(weights, dtype=F64)


COUNTS = [[3, 0, 5, 1], [0, 0, 4], [7], [2, 0], [1, 1, 1]]


@pytest.mark.parametrize("counts", COUNTS)
def test_weights_equal_a_loop_over_rays(counts):
    samples = random_samples(counts)
    torch.testing.assert_close(render_weights(*samples, len(counts)), loop(*samples))


@pytest.mark.parametrize("counts", COUNTS)
def test_weights_of_a_ray_sum_to_its_opacity(counts):
    density, t_starts, t_ends, ray_indices = random_samples(counts)
    weights = render_weights(density, t_starts, t_ends, ray_indices, len(counts))
    thickness = accumulate(density * (t_ends - t_starts), None, ray_indices, len(counts))
    opacity = accumulate(weights, None, ray_indices, len(counts))
    torch.testing.assert_close(opacity, 1 - torch.exp(-thickness))
    assert (opacity[torch.tensor(counts) == 0] == 0).all()


def test_a_ray_does_not_feel_its_neighbours():
    density, t_starts, t_ends, ray_indices = random_samples([4, 6, 5], dtype=torch.float32)
    alone = render_weights(density, t_starts, t_ends, ray_indices, 3)
    density = torch.where(ray_indices == 1, torch.inf, density)
    beside = render_weights(density, t_starts, t_ends, ray_indices, 3)
    torch.testing.assert_close(beside[ray_indices != 1], alone[ray_indices != 1])
    torch.testing.assert_close(beside[4:10], torch.tensor([1.0, 0, 0, 0, 0, 0]))


def test_float32_stays_precise_over_millions_of_samples():
    n_rays, n = 20_000, 150  # behind 3 million samples, half of the rays as good as opaque
    density = torch.rand(n_rays, n) * torch.tensor([500.0, 0.5]).repeat(n_rays // 2)[:, None]
    t_ends = 2 + 0.01 * torch.arange(1, n + 1).expand(n_rays, n)
    t_starts = t_ends - 0.01
    ray_indices = torch.arange(n_rays).repeat_interleave(n)
    weights = render_weights(
        density.flatten(), t_starts.flatten(), t_ends.flatten(), ray_indices, n_rays
    ).view(n_rays, n)
    thickness = (density * (t_ends - t_starts)).double()
    light = torch.exp(-(thickness.cumsum(1) - thickness))
    expected = light * (1 - torch.exp(-thickness))
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", COUNTS[:2])
def test_gradients_and_their_gradients_equal_finite_differences(counts):
    density, t_starts, t_ends, ray_indices = random_samples(counts)
    rgb = torch.rand(len(density), 3, dtype=F64, requires_grad=True)
    background = torch.rand(len(counts), 3, dtype=F64, requires_grad=True)
    t = (t_starts + t_ends) / 2

    def render(density, rgb, background):
        weights = render_weights(density, t_starts, t_ends, ray_indices, len(counts))
        opacity = accumulate(weights, None, ray_indices, len(counts))
        image = accumulate(weights, rgb, ray_indices, len(counts)) + (1 - opacity) * background
        return image, opacity, depth_variance(weights, t, opacity, ray_indices)

    # no ray near opacity 0.5, where depth_variance jumps
    _, opacity, _ = render(density, rgb, background)
    assert ((opacity - 0.5).abs() > 1e-3).all()
    inputs = (density.requires_grad_(), rgb, background)
    assert torch.autograd.gradcheck(render, inputs)
    assert torch.autograd.gradgradcheck(render, inputs, fast_mode=True)


def test_sum_before_counts_within_the_ray_only():
    ray_indices = torch.tensor([0, 0, 0, 2, 2, 5])
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    expected = torch.tensor([0.0, 1.0, 3.0, 0.0, 8.0, 0.0])
    torch.testing.assert_close(sum_before(values, ray_indices, 7), expected)
    assert ray_offsets(ray_indices, 7).tolist() == [0, 3, 3, 5, 5, 5, 6, 6]


def test_looking_drops_the_transparent_and_the_hidden_and_says_what_is_dark():
    t_starts = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    density = torch.tensor([1e-3, 5.0, 2.0, 20.0, 1.0, 5.0])  # light: 1, 1, .007, .0009, 1e-12, 1
    ray_indices = torch.tensor([0, 0, 0, 0, 0, 1])
    seen = look(density, t_starts, t_starts + 1, ray_indices, 2, torch.tensor(0.01), 1e-4, 5e-3)
    assert seen.tolist() == [0, 2, 2, 1, 0, 2]


def test_depth_variance_of_two_equal_surfaces():
    """Half of the weight at 2, half at 3: mean 2.5, variance 1/4, however much both weigh."""
    t = torch.tensor([2.0, 3.0, 2.0, 3.0])
    weights = torch.tensor([0.5, 0.5, 0.3, 0.3])
    ray_indices = torch.tensor([0, 0, 1, 1])
    opacity = accumulate(weights, None, ray_indices, 3)
    variance = depth_variance(weights, t, opacity, ray_indices)
    torch.testing.assert_close(variance, torch.tensor([[0.25], [0.25], [0.0]]))
    faint = depth_variance(weights / 2, t, opacity / 2, ray_indices)
    torch.testing.assert_close(faint, torch.tensor([[0.0], [0.0], [0.0]]))


def test_nothing_at_all_gives_empty_rays():
    none = torch.zeros(0, requires_grad=True)
    ray_indices = torch.zeros(0, dtype=torch.long)
    weights = render_weights(none, torch.zeros(0), torch.zeros(0), ray_indices, 4)
    image = accumulate(weights, torch.zeros(0, 3), ray_indices, 4)
    assert image.shape == (4, 3) and (image == 0).all()
    image.sum().backward()
    assert none.grad.shape == (0,)


def random_scene(counts, dtype, channels=3, device="cpu"):
    """What `composite` takes; some samples are opaque, some rays empty, none at opacity 0.5."""
    density, *rest = random_samples(counts, F64, density=8.0)
    density[::7] = 2e4  # more than OPAQUE
    rgb, normal = (
        torch.rand(len(density), channels, dtype=F64),
        torch.randn(len(density), 3).double(),
    )
    background = torch.rand(len(counts), channels, dtype=F64)
    floats = density, rgb, normal, background, *rest[:2]
    return [*(x.to(device, dtype) for x in floats), rest[2].to(device)]


def composite_and_gradients(function, scene, slopes, wanted=(0, 1, 2, 3)):
    scene = list(scene)
    for i in wanted:
        scene[i] = None if scene[i] is None else scene[i].clone().requires_grad_()
    out = [x for x in function(*scene) if x is not None]
    used = [(x, slope.to(x)) for x, slope in zip(out, slopes, strict=False) if slope is not None]
    loss = sum((x * slope).sum() for x, slope in used)
    inputs = [scene[i] for i in wanted if scene[i] is not None]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    zeros = (
        g if g is not None else torch.zeros_like(x) for g, x in zip(gradients, inputs, strict=True)
    )
    return [x.detach() for x in out], list(zeros)


def test_a_composite_is_its_parts():
    density, rgb, normal, background, t_starts, t_ends, ray_indices = random_scene(COUNTS[0], F64)
    out = composite(density, rgb, normal, background, t_starts, t_ends, ray_indices)
    weights = loop(density, t_starts, t_ends, ray_indices)
    for r in range(len(background)):
        own = ray_indices == r
        w, t = weights[own], (t_starts + t_ends)[own] / 2
        colour, opacity = w @ rgb[own], w.sum()
        torch.testing.assert_close(out.comp_rgb[r], colour + (1 - opacity) * background[r])
        torch.testing.assert_close(out.comp_rgb_fg[r], colour)
        torch.testing.assert_close(out.opacity[r, 0], opacity)
        torch.testing.assert_close(out.depth[r, 0], w @ t)
        direction = w @ normal[own]
        unit = direction / direction.norm().clamp(min=1e-12)
        torch.testing.assert_close(out.comp_normal[r], (unit + 1) / 2 * opacity)
    assert composite(density, rgb, None, background, t_starts, t_ends, ray_indices)[6] is None


MANY = [0, 1, 31, 32, 33, 64, 100, 0, 0, 257, 5]  # samples of rays, around the lanes of a warp
ONLY = [*range(7), None]  # outputs that have a gradient; None: all


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("only", ONLY)
def test_the_kernels_composite_as_the_definition_does(only, normals, channels):
    torch.manual_seed(0)
    exact = random_scene(MANY * 20, F64, channels, "cuda")
    if not normals:
        exact[2] = None
    slopes = [torch.randn(x.shape) for x in composite(*exact) if x is not None]
    if only is not None:
        slopes = [x if i == only else None for i, x in enumerate(slopes)]
    if all(x is None for x in slopes):
        pytest.skip("there is no normal")
    single = [x.float() if x is not None and x.is_floating_point() else x for x in exact]
    assert compositing_cuda.fits(*single[:4])
    wanted = composite_and_gradients(composite, exact, slopes)
    found = composite_and_gradients(compositing_cuda.composite_cuda, single, slopes)
    twin = composite_and_gradients(composite, single, slopes)
    for values, others, same in zip(found, wanted, twin, strict=True):
        for x, y, z in zip(values, others, same, strict=True):
            scale = float(y.abs().max())
            # the definition sums along rays in float64, the kernels 32 samples in float32
            allowed = 10 * float((z - y).abs().max()) + 1e-5 * scale
            assert float((x - y).abs().max()) <= allowed, (x - y, scale)


def to_be_sieved(repeated, device="cpu"):
    density, _, _, background, *samples = random_scene(MANY * repeated, torch.float32, 3, device)
    least = torch.tensor(0.05, device=device)
    return density, *samples, len(background), least, 1e-2, 0.2


def test_a_sieve_says_where_what_is_seen_is():
    arguments = to_be_sieved(3)
    seen = look(*arguments)
    found = sieve(seen)
    assert set(seen.tolist()) == {0, 1, 2}
    assert found.kept.tolist() == [i for i, level in enumerate(seen.tolist()) if level]
    levels, last = seen[found.kept].tolist(), -1
    for place, level in enumerate(levels):
        last += level == 2
        assert (place in found.lit.tolist()) == (level == 2)
        assert (place in found.dark.tolist()) == (level == 1)
        assert found.ahead[place] == max(last, 0)
    assert torch.equal(torch.cat([found.lit, found.dark])[found.order], torch.arange(len(levels)))


@pytest.mark.gpu
def test_the_kernels_sieve_as_the_definition_does():
    torch.manual_seed(0)
    arguments = to_be_sieved(100, "cuda")
    found, wanted = compositing_cuda.sieve_cuda(*arguments), sieve(look(*arguments))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


SAMPLES, FLOATS = ["const long long*", "int", "int"], ["const float*"]
OUT, PLACES = ["float*"], ["long long*"]
KERNELS = {  # the types of their arguments
    "look": [*SAMPLES, *FLOATS * 4, "float", "float", "unsigned char*", *PLACES],
    "sieve": [*SAMPLES, "const unsigned char*", "const long long*", *PLACES * 5],
    "forward": [*SAMPLES, *FLOATS * 6, *OUT * 9],
    "backward": [*SAMPLES, *FLOATS * 19, *OUT * 4],
}


@pytest.fixture
def on_host(monkeypatch, tmp_path):
    run_on_host(monkeypatch, compositing_cuda, tmp_path, KERNELS, talking=True)


def test_the_sieves_arithmetic_is_the_definitions_on_a_host_too(on_host):
    torch.manual_seed(0)
    arguments = to_be_sieved(3)
    found, wanted = compositing_cuda.sieve_cuda(*arguments), sieve(look(*arguments))
    assert all(len(places) for places in wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_the_composites_arithmetic_is_the_definitions_on_a_host_too(on_host):
    torch.manual_seed(0)
    exact = random_scene(MANY, F64)
    single = [x.float() if x.is_floating_point() else x for x in exact]
    slopes = [torch.randn(x.shape) for x in composite(*exact)]
    wanted = composite_and_gradients(composite, exact, slopes)
    found = composite_and_gradients(compositing_cuda.composite_cuda, single, slopes)
    for ours, theirs in zip(found, wanted, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


@pytest.mark.gpu
def test_the_kernels_take_rays_without_any_sample():
    none = torch.zeros(0, device="cuda", requires_grad=True)
    background = torch.rand(4, 3, device="cuda")
    scene = none, none[:, None].expand(0, 3), None, background, none.detach(), none.detach()
    out = compositing_cuda.composite_cuda(*scene, none.detach().long())
    torch.testing.assert_close(out.comp_rgb, background)
    out.comp_rgb.sum().backward()
    assert none.grad.shape == (0,)
