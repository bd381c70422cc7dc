"""Marching: against a loop over rays and lattice points, and against lengths that are known."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from animate124.renderer import ray_marching_cuda
from animate124.renderer.ray_marching import group_edges, march, occupied_box, ray_box_distances

from host_kernels import run_on_host

AABB = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def random_rays(n):
    """Rays from outside and inside of the box, some along an axis, some missing the box."""
    origins = F.normalize(torch.randn(n, 3), dim=-1) * 3 * torch.rand(n, 1)
    directions = F.normalize(0.7 * torch.randn(n, 3) - origins, dim=-1)
    along = torch.eye(3).repeat(n // 12, 1)
    directions[: len(along)] = along * (2 * torch.randint(2, (len(along), 1)) - 1)
    return origins, directions


def loop(origin, direction, binaries, aabb, step, near, far, jitter):
    """t_starts of one ray, lattice point by lattice point in float64.

    Also says of each whether its midpoint is clear of cell borders, where rounding decides.
    """
    starts = []
    shape = torch.tensor(binaries.shape)
    for k in range(math.ceil(8 / step)):
        t = near + (k + jitter) * step
        middle = t + step / 2
        cell = (origin + middle * direction - aabb[:3]) / (aabb[3:] - aabb[:3]) * shape
        index = cell.floor().long()
        clear = bool(((cell - cell.round()).abs() > 1e-4).all()) and abs(middle - far) > 1e-4
        inside = bool(((index >= 0) & (index < shape)).all())
        if inside and middle < far and binaries[tuple(index)]:
            starts.append((t, clear))
        elif not clear:
            starts.append((t, False))
    return starts


@pytest.mark.parametrize(
    "shape, aabb, near, far",
    [
        ((8, 8, 8), AABB, 0.0, 1e10),
        ((5, 3, 7), torch.tensor([-1.0, -0.5, 0.0, 1.5, 0.5, 1.0]), 0.4, 2.9),
    ],
)
def test_march_equals_a_loop_over_lattice_points(shape, aabb, near, far):
    binaries, step = torch.rand(shape) < 0.4, 0.05
    origins, directions = random_rays(48)
    jitter = torch.rand(48)
    ray_indices, t_starts, t_ends = march(
        origins, directions, binaries, aabb, step, near=near, far=far, jitter=jitter
    )
    assert len(ray_indices) > 100
    torch.testing.assert_close(
        t_ends - t_starts, torch.full_like(t_starts, step), atol=1e-6, rtol=0
    )
    for r in range(48):
        found = t_starts[ray_indices == r].tolist()
        wanted = loop(
            *(x.double() for x in (origins[r], directions[r])),
            binaries,
            aabb.double(),
            step,
            near,
            far,
            jitter[r].item(),
        )
        for t, clear in wanted:
            assert not clear or any(abs(t - s) < 1e-5 for s in found)
        for s in found:
            assert any(abs(t - s) < 1e-5 for t, _ in wanted)


def test_samples_are_sorted_by_ray_and_distance():
    origins, directions = random_rays(60)
    ray_indices, t_starts, _ = march(origins, directions, torch.rand(8, 8, 8) < 0.5, AABB, 0.03)
    same = ray_indices[1:] == ray_indices[:-1]
    assert (ray_indices[1:] >= ray_indices[:-1]).all()
    assert (t_starts[1:][same] > t_starts[:-1][same]).all()


@pytest.mark.parametrize("group", [1, 50, 1000, 10**9])
def test_the_size_of_the_groups_does_not_matter(group):
    origins, directions = random_rays(60)
    binaries, jitter = torch.rand(8, 8, 8) < 0.3, torch.rand(60)
    one = march(origins, directions, binaries, AABB, 0.03, jitter=jitter)
    other = march(origins, directions, binaries, AABB, 0.03, jitter=jitter, group=group)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_groups_cover_all_rays_and_are_small():
    counts = torch.randint(0, 40, (100,))
    edges = group_edges(counts, 64)
    assert edges[0] == (0, 0) and edges[-1] == (100, int(counts.sum()))
    for (ray_0, before_0), (ray_1, before_1) in pairwise(edges):
        assert before_1 - before_0 == int(counts[ray_0:ray_1].sum()) <= 64 + 40


@pytest.mark.parametrize("jittered", [False, True])
def test_a_full_grid_is_sampled_along_the_whole_chord(jittered):
    origins, directions = random_rays(200)
    step = 0.01
    jitter = torch.rand(200) * jittered  # where the ray starts in the box, it skips the shift
    ray_indices, *_ = march(
        origins, directions, torch.ones(4, 4, 4, dtype=torch.bool), AABB, step, jitter=jitter
    )
    enter, leave = ray_box_distances(origins, directions, AABB[:3], AABB[3:])
    chord = (leave - enter.clamp(min=0)).clamp(min=0)
    counts = torch.bincount(ray_indices, minlength=200)
    assert ((counts * step - chord).abs() <= step * (1.01 + jitter)).all()


def test_jitter_makes_the_mean_length_exact():
    """With a random lattice the expected number of samples times the step is the chord."""
    n, step = 20_000, 0.5
    origins, directions = torch.tensor([[-3.0, 0.1, 0.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    binaries = torch.zeros(4, 4, 4, dtype=torch.bool)
    binaries[1:3] = True  # x in [-0.5, 0.5]
    ray_indices, t_starts, t_ends = march(
        origins.expand(n, 3), directions.expand(n, 3), binaries, AABB, step, jitter=torch.rand(n)
    )
    assert abs(len(ray_indices) / n * step - 1.0) < 0.01
    middle = (t_starts + t_ends) / 2
    assert middle.min() > 2.5 - 1e-5 and middle.max() < 3.5 + 1e-5


def test_nothing_occupied_and_rays_that_miss_give_no_samples():
    origins, directions = random_rays(20)
    empty = torch.zeros(4, 4, 4, dtype=torch.bool)
    assert all(len(x) == 0 for x in march(origins, directions, empty, AABB, 0.1))
    away = F.normalize(origins, dim=-1)
    outside = 4 * away
    assert all(len(x) == 0 for x in march(outside, away, ~empty, AABB, 0.1))
    none = torch.zeros(0, 3)
    assert all(len(x) == 0 for x in march(none, none, ~empty, AABB, 0.1))


def test_occupied_box_is_tight():
    binaries = torch.zeros(4, 5, 10, dtype=torch.bool)
    binaries[1, 2, 3] = binaries[2, 2, 7] = True
    low, high = occupied_box(binaries, AABB)
    torch.testing.assert_close(low, torch.tensor([-0.5, -0.2, -0.4]))
    torch.testing.assert_close(high, torch.tensor([0.5, 0.2, 0.6]))
    low, high = occupied_box(torch.zeros_like(binaries), AABB)
    assert (low > high).all()


def test_box_distances_are_those_of_the_hit_points():
    origins, directions = random_rays(500)
    enter, leave = ray_box_distances(origins, directions, AABB[:3], AABB[3:])
    hit = enter < leave
    assert 0.2 < hit.float().mean() < 1
    for t in (enter, leave):
        points = (origins + t[:, None] * directions)[hit]
        torch.testing.assert_close(points.abs().amax(-1), torch.ones(int(hit.sum())))


def assert_same(kernel, definition, least=50_000):
    """Samples of the kernel and of the definition."""
    found, wanted = (
        set(zip(samples[0].tolist(), samples[1].tolist(), strict=True))
        for samples in (kernel, definition)
    )
    assert len(wanted) > least
    # a point on the border between cells may be rounded to either
    assert len(found ^ wanted) <= 1e-4 * len(wanted)
    assert (kernel[0][1:] >= kernel[0][:-1]).all()
    assert torch.equal(kernel[2], kernel[1] + 0.0135)


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("shape", [(32, 32, 32), (5, 3, 7)])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_kernel_finds_the_samples_of_the_definition(shape, jittered, device):
    origins, directions, jitter, aabb, binaries = (
        x.to(device) for x in (*random_rays(5000), torch.rand(5000), AABB, torch.rand(shape) < 0.3)
    )
    rays = (origins, directions, binaries, aabb, 0.0135)
    options = {"near": 0.4, "far": 2.9, "jitter": jitter if jittered else None}
    assert_same(march(*rays, **options), march(*rays, **options, group=2**22))
    nothing = march(*rays[:2], torch.zeros_like(binaries), *rays[3:], **options)
    assert all(len(x) == 0 for x in nothing)
    assert all(len(x) == 0 for x in march(origins[:0], directions[:0], *rays[2:]))


FLOATS, SIDES, PLACES = ["const float*"], ["int"] * 3, ["long long*"]
KERNEL = [*FLOATS * 2, "int", "const unsigned char*", *SIDES, *FLOATS * 3, *["float"] * 3, *FLOATS]
KERNEL += ["const long long*", *PLACES * 2, "float*"]


@pytest.mark.parametrize("jittered", [False, True])
def test_the_kernels_arithmetic_is_the_definitions_on_a_host_too(tmp_path, monkeypatch, jittered):
    run_on_host(monkeypatch, ray_marching_cuda, tmp_path, {"march": KERNEL})
    origins, directions = random_rays(1200)
    binaries, jitter = torch.rand(5, 3, 7) < 0.3, torch.rand(1200) if jittered else None
    rays, ends = (origins, directions, binaries, AABB, 0.0135), (0.4, 2.9, jitter)
    box = occupied_box(binaries, AABB)
    found = ray_marching_cuda.march_cuda(*rays, box, *ends)
    named = dict(zip(("near", "far", "jitter"), ends, strict=True))
    assert_same(found, march(*rays, **named, group=2**22), least=10_000)
