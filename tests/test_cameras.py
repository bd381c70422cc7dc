"""Laws of the cameras: rays, matrices and reported angles belong together."""

import pytest
import torch
from animate124.data.cameras import (
    Cameras,
    camera_angles,
    look_at,
    sample_azimuth_deg,
    sample_elevation_deg,
    sent_together,
)
from hypothesis import given, settings
from hypothesis import strategies as st

law = settings(deadline=None, max_examples=40)
angles = st.floats(-90, 90, width=32)
turns = st.floats(-720, 720, width=32)
distances = st.floats(0.5, 10, width=32)
fovs = st.floats(1, 170, width=32)
sides = st.integers(1, 9)
seeds = st.integers(0, 2**31)


@st.composite
def cameras(draw):
    n = draw(st.integers(1, 3))
    lists = [
        draw(st.lists(values, min_size=n, max_size=n))
        for values in (angles, turns, distances, fovs)
    ]
    return Cameras.of(*lists)


def rng(seed):
    return torch.Generator().manual_seed(seed)


@law
@given(cameras())
def test_c2w_is_a_right_handed_rotation_looking_at_the_origin(cams):
    c2w = cams.c2w
    right, up, backward, eye = c2w[:, :3].unbind(-1)
    identity = torch.eye(3).expand(len(cams), 3, 3)
    torch.testing.assert_close(c2w[:, :3, :3].mT @ c2w[:, :3, :3], identity, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.cross(right, up), backward, atol=2e-6, rtol=0)
    torch.testing.assert_close(eye, backward * cams.distance[:, None], atol=2e-5, rtol=1e-5)
    assert (right[:, 2].abs() < 1e-5).all()  # the horizon is level
    assert (up[:, 2] > -1e-5).all()  # and the sky above it
    assert torch.equal(c2w[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(len(cams), 4))


@law
@given(cameras())
def test_position_and_angles_tell_the_same(cams):
    elevation, azimuth, distance = camera_angles(cams.position)
    torch.testing.assert_close(distance, cams.distance)
    torch.testing.assert_close(elevation, cams.elevation_deg, atol=0.02, rtol=0)
    turn = torch.deg2rad(azimuth - cams.azimuth_deg)
    off_axis = torch.cos(torch.deg2rad(cams.elevation_deg))  # azimuth means nothing at a pole
    torch.testing.assert_close(off_axis * torch.cos(turn), off_axis, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        off_axis * torch.sin(turn), torch.zeros_like(turn), atol=2e-5, rtol=0
    )


def test_azimuth_starts_on_x_and_grows_towards_y_and_elevation_towards_z():
    got = Cameras.of([0, 0, 0, 90], [0, 90, -90, 0], 2).position
    want = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 2]])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@law
@given(cameras(), sides, sides)
def test_rays_are_unit_and_leave_from_the_eye(cams, height, width):
    batch = cams.batch(height, width)
    assert batch["rays_d"].shape == (len(cams), height, width, 3)
    norm = batch["rays_d"].norm(dim=-1)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    eye = cams.position[:, None, None].expand_as(batch["rays_o"])
    torch.testing.assert_close(batch["rays_o"], eye)


@law
@given(cameras(), sides, sides, st.floats(0.5, 20))
def test_a_point_on_a_ray_projects_to_its_pixels_centre(cams, height, width, t):
    batch = cams.batch(height, width)
    points = batch["rays_o"] + t * batch["rays_d"]
    points = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    clip = torch.einsum("bij,bhwj->bhwi", batch["mvp_mtx"].double(), points.double())
    ndc = clip[..., :3] / clip[..., 3:]
    column = (ndc[..., 0] + 1) / 2 * width
    row = (ndc[..., 1] + 1) / 2 * height  # y grows down the picture, as nvdiffrast has it
    want_row, want_column = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
    )
    # float32 rays: a thousandth of a pixel at a field of view of a degree
    scale = 2e-4 * max(height, width) / torch.tan(cams.fovy / 2).clamp(max=1).min().double()
    assert (column - want_column).abs().max() < scale
    assert (row - want_row).abs().max() < scale
    # in the frustum by OpenGL's rules, as every t here lies between near and far, or is nearer
    depth = t * torch.einsum("bhwi,bi->bhw", batch["rays_d"], -cams.c2w[:, :3, 2])
    inside = (depth > 0.1001) & (depth < 99.9)
    assert (ndc[..., 2].abs()[inside] <= 1).all()


def test_top_row_looks_up_and_left_column_looks_left():
    rays_d = Cameras.of().batch(3, 3)["rays_d"][0]  # on +x, so that left is -y
    assert (rays_d[0, :, 2] > 0).all() and (rays_d[2, :, 2] < 0).all()
    assert (rays_d[:, 0, 1] < 0).all() and (rays_d[:, 2, 1] > 0).all()
    torch.testing.assert_close(rays_d[1, 1], torch.tensor([-1.0, 0, 0]))


def test_field_of_view_spans_the_picture_from_edge_to_edge():
    rays_d = Cameras.of(fovy_deg=40).batch(1000, 1)["rays_d"][0, :, 0]
    half_pixel = 0.02
    angle = torch.rad2deg(torch.asin(rays_d[0, 2]) - torch.asin(rays_d[-1, 2]))
    assert 40 - 4 * half_pixel < angle < 40


@law
@given(cameras(), st.integers(1, 20), seeds)
def test_drift_stays_in_its_bounds_at_a_constant_rate(cams, num_frames, seed):
    clip = cams.drift(num_frames, generator=rng(seed))
    azimuth = clip.azimuth_deg.view(-1, num_frames)
    elevation = clip.elevation_deg.view(-1, num_frames)
    torch.testing.assert_close(azimuth[:, 0], cams.azimuth_deg)
    torch.testing.assert_close(elevation[:, 0], cams.elevation_deg)
    torch.testing.assert_close(clip.fovy_deg, cams.fovy_deg.repeat_interleave(num_frames))
    torch.testing.assert_close(clip.distance, cams.distance.repeat_interleave(num_frames))
    assert (azimuth.diff().abs() <= 180 / (2 * num_frames) + 1e-3).all()
    assert (elevation.diff().abs() <= 180 / (16 * num_frames) + 1e-3).all()
    assert (elevation.abs() <= 90).all()
    torch.testing.assert_close(
        azimuth.diff(n=2), torch.zeros_like(azimuth.diff(n=2)), atol=1e-3, rtol=0
    )


def test_drift_goes_both_ways_and_nearly_to_its_bounds():
    clip = Cameras.of(torch.zeros(2000)).drift(2, generator=rng(0))
    azimuth = clip.azimuth_deg.view(-1, 2)[:, 1]
    elevation = clip.elevation_deg.view(-1, 2)[:, 1]
    assert azimuth.min() < -44.5 and azimuth.max() > 44.5
    assert elevation.min() < -5.5 and elevation.max() > 5.5


@law
@given(
    cameras(), st.integers(1, 6), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.1]), seeds
)
def test_reported_angles_are_those_of_the_rays(cams, num_frames, moved, turned, seed):
    cams = cams.perturbed(moved, turned, turned, generator=rng(seed))
    batch = cams.drift(num_frames, generator=rng(seed)).batch(2, 3)
    told = Cameras.of(batch["elevation"], batch["azimuth"], batch["camera_distances"])
    for positions in (batch["rays_o"][:, 1, 2], batch["c2w"][:, :3, 3], batch["camera_positions"]):
        torch.testing.assert_close(told.position, positions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.rad2deg(batch["fovy"]), cams.frames(num_frames).fovy_deg)
    rotation = batch["c2w"][:, :3, :3]
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation.mT @ rotation, identity, atol=2e-6, rtol=0)


def test_perturbations_move_what_they_name():
    cams = Cameras.of(10, torch.zeros(500), 2.5)
    same = cams.perturbed(generator=rng(0))
    assert torch.equal(same.c2w, cams.c2w)
    shift = cams.perturbed(position=0.2, generator=rng(0)).position - cams.position
    assert 0.19 < shift.abs().max() <= 0.2001
    aside = cams.perturbed(target=0.2, generator=rng(0))
    torch.testing.assert_close(aside.position, cams.position)
    assert (aside.c2w[:, :3, 2] - cams.c2w[:, :3, 2]).norm(dim=-1).max() > 0.1
    rolled = cams.perturbed(up=0.2, generator=rng(0))
    torch.testing.assert_close(rolled.c2w[:, :3, 2:], cams.c2w[:, :3, 2:])
    assert rolled.c2w[:, 2, 0].std() == pytest.approx(0.2, rel=0.2)  # horizon off level, radians


def test_look_at_defaults_to_z_up_and_has_an_answer_straight_above():
    cams = Cameras.of([20, -70], [30, 200])
    torch.testing.assert_close(look_at(cams.position, torch.zeros(2, 3)), cams.c2w)
    above = look_at(torch.tensor([0.0, 0, 2]), torch.zeros(3))
    assert torch.linalg.det(above[:3, :3]) == pytest.approx(1)
    torch.testing.assert_close(above[:3, 1], torch.tensor([1.0, 0, 0]))  # world x points up


@law
@given(seeds, st.tuples(angles, angles).map(sorted), st.integers(1, 8))
def test_sampled_angles_stay_in_their_ranges(seed, bounds, n):
    elevation = sample_elevation_deg(n, bounds, generator=rng(seed))
    assert (elevation >= bounds[0]).all() and (elevation <= bounds[1]).all()
    for stratified in (False, True):
        azimuth = sample_azimuth_deg(n, bounds, stratified=stratified, generator=rng(seed))
        assert (azimuth >= bounds[0] - 1e-4).all() and (azimuth <= bounds[1] + 1e-4).all()
        if stratified:
            edges = torch.linspace(bounds[0], bounds[1], n + 1)
            assert (azimuth >= edges[:-1] - 1e-4).all() and (azimuth <= edges[1:] + 1e-4).all()


def test_elevation_is_uniform_in_angle_half_the_time_and_on_the_sphere_otherwise():
    """Of [0, 90], angle halves at 45 degrees, the sphere at 30; a draw of n is all of one kind."""
    generator, n = rng(0), 500
    above_45 = torch.stack(
        [
            (sample_elevation_deg(n, (0, 90), generator=generator) > 45).float().mean()
            for _ in range(300)
        ]
    )
    on_sphere = 1 - 0.5**0.5  # share of the sphere's upper half above 45 degrees
    by_angle = above_45 > (0.5 + on_sphere) / 2
    assert by_angle.float().mean() == pytest.approx(0.5, abs=0.1)
    assert above_45[by_angle].mean() == pytest.approx(0.5, abs=0.01)
    assert above_45[~by_angle].mean() == pytest.approx(on_sphere, abs=0.01)


def test_the_same_generator_gives_the_same_cameras():
    a, b = (Cameras.of(torch.zeros(3)).drift(4, generator=rng(5)) for _ in range(2))
    assert torch.equal(a.c2w, b.c2w)
    assert not torch.equal(a.c2w, Cameras.of(torch.zeros(3)).drift(4, generator=rng(6)).c2w)


def test_frame_times_go_into_the_batch_and_default_to_zero():
    times = torch.tensor([0.25, 0.5])
    assert torch.equal(Cameras.of([0, 1]).batch(1, 1, times)["frame_times"], times)
    assert torch.equal(Cameras.of([0, 1]).batch(1, 1)["frame_times"], torch.zeros(2))


def test_what_goes_to_a_device_as_one_is_the_same_there():
    values = [torch.rand(3, 4, 4), torch.rand(3), torch.rand(3, 2)]
    for value, there in zip(values, sent_together(values, "cpu"), strict=True):
        assert torch.equal(value, there)
    one = [torch.rand(1, 4, 4), torch.rand(1)]
    assert all(map(torch.equal, one, sent_together(one, "cpu")))
