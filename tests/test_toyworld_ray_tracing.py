"""Ray tracing against closed forms, a scalar reference, and symmetries."""

import math

import numpy as np
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.toyworld.characters import make_character
from animate124.toyworld.motions import animate
from animate124.toyworld.ray_tracing import Ellipsoids, concatenate, intersect, normals, render
from animate124.toyworld.skeleton import affine, rotations

DISTANCE, FOVY = 2.5, math.radians(40)


def ellipsoids(
    n: int, seed: int = 0, radii=(0.1, 0.4), spread: float = 0.3, dtype=torch.float64
) -> Ellipsoids:
    """One scene of n random ellipsoids."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)

    linear = rotations(uniform(-3, 3, n, 3)) * uniform(*radii, n, 3)[:, None, :]
    frames = affine(linear, uniform(-spread, spread, n, 3))
    return Ellipsoids(frames[None], uniform(0, 1, n, 3)[None])


def sphere(radius: float) -> Ellipsoids:
    frame = affine(radius * torch.eye(3), torch.zeros(3))
    return Ellipsoids(frame[None, None], torch.ones(1, 1, 3))


def projected_area(frame: torch.Tensor, c2w: torch.Tensor, fovy: float, height: int) -> float:
    """Pixels that an ellipsoid's outline encloses: the conic of the rays d that touch it,
    d^T M d = 0 with M = Q o o^T Q - (o^T Q o - 1) Q, has the area pi |det M| / det(M_xy)^(3/2)."""
    linear, centre = frame[:3, :3], frame[:3, 3]
    q = torch.linalg.inv(linear @ linear.T)
    o = c2w[:3, 3] - centre
    m = torch.outer(q @ o, q @ o) - (o @ q @ o - 1) * q
    m = c2w[:3, :3].T @ m @ c2w[:3, :3]  # in the camera's frame, where z = -1 is the picture
    focal = 0.5 * height / math.tan(fovy / 2)
    area = math.pi * torch.linalg.det(m).abs() / torch.linalg.det(m[:2, :2]).abs() ** 1.5
    return float(area) * focal**2


def test_a_sphere_covers_its_closed_form_area():
    radius, size = 0.6, 64
    alpha = render(sphere(radius), Cameras.of(20, 50).batch(size, size), supersample=4)["alpha"]
    focal = 0.5 * size / math.tan(FOVY / 2)
    outline = focal * math.tan(math.asin(radius / DISTANCE))
    assert alpha.sum().item() == pytest.approx(math.pi * outline**2, rel=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_an_ellipsoid_covers_its_closed_form_area(seed):
    scene = ellipsoids(1, seed, radii=(0.15, 0.4))
    camera = Cameras.of([10.0 * seed - 30], [70.0 * seed]).batch(48, 48)
    alpha = render(scene, camera, supersample=6)["alpha"]
    expected = projected_area(scene.frames[0, 0], camera["c2w"][0].double(), FOVY, 48)
    assert alpha.sum().item() == pytest.approx(expected, rel=2e-3)


def test_tiny_ellipsoids_keep_their_outline_in_single_precision():
    single = ellipsoids(1, radii=(0.01, 0.02), dtype=torch.float32)
    double = Ellipsoids(single.frames.double(), single.colours.double())
    camera = Cameras.of(0, 0, 2.5, 2.0).batch(32, 32)  # through a telephoto lens
    camera["c2w"][:, :3, 3] += single.frames[0, 0, :3, 3]
    got, expected = (render(s, camera)["alpha"] for s in (single, double))
    assert expected.mean() > 0.03
    assert (got - expected).abs().mean() < 1e-3


def test_the_centre_ray_has_the_closed_form_depth():
    frame = affine(torch.diag(torch.tensor([0.5, 0.3, 0.2])), torch.zeros(3))
    scene = Ellipsoids(frame[None, None], torch.ones(1, 1, 3))
    camera = Cameras.of([0, 0, 90], [0, 90, 0]).batch(3, 3)  # down the three axes
    depth = render(scene, camera, supersample=1)["depth"][:, 1, 1, 0]
    torch.testing.assert_close(depth, DISTANCE - torch.tensor([0.5, 0.3, 0.2]))


def test_hits_agree_with_the_quadratic_formula_ray_by_ray():
    scene = ellipsoids(7, seed=3)
    camera = Cameras.of(25, 130).batch(9, 9)
    origin = camera["c2w"][:, :3, 3].double()
    directions = camera["rays_d"].double().flatten(1, 2)
    distance, which = intersect(scene.frames, origin, directions)
    hits = 0
    for ray in range(81):
        best, best_e = math.inf, None
        for e, frame in enumerate(scene.frames[0].numpy()):
            inverse = np.linalg.inv(frame[:3, :3])
            o = inverse @ (origin[0].numpy() - frame[:3, 3])
            d = inverse @ directions[0, ray].numpy()
            a, b, c = d @ d, 2 * o @ d, o @ o - 1
            if b * b > 4 * a * c and (-b - math.sqrt(b * b - 4 * a * c)) / (2 * a) < best:
                best, best_e = (-b - math.sqrt(b * b - 4 * a * c)) / (2 * a), e
        assert distance[0, ray].item() == pytest.approx(best, rel=1e-9)
        assert best_e is None or which[0, ray] == best_e
        hits += best_e is not None
    assert 10 < hits < 75


def test_normals_are_unit_outward_gradients():
    scene = ellipsoids(5, seed=1)
    camera = Cameras.of(-15, 200).batch(16, 16)
    origin, rays = camera["c2w"][:, :3, 3].double(), camera["rays_d"].double().flatten(1, 2)
    distance, which = intersect(scene.frames, origin, rays)
    hit = distance[0].isfinite()
    points = origin + distance[0, hit, None] * rays[0, hit]
    frames = scene.frames[0, which[0, hit]]
    to_local = torch.linalg.inv(frames)

    def level(x: torch.Tensor) -> torch.Tensor:  # 1 on the surface, growing outwards
        return (to_local[:, :3, :3] @ x[..., None] + to_local[:, :3, 3:]).square().sum((-1, -2))

    torch.testing.assert_close(level(points), torch.ones(len(points), dtype=torch.float64))
    steps = 1e-5 * torch.eye(3, dtype=torch.float64)
    gradient = torch.stack([level(points + s) - level(points - s) for s in steps], dim=-1)
    expected = gradient / gradient.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(normals(frames, points), expected, rtol=0, atol=1e-8)
    picture = render(scene, camera, supersample=1)["normal"][0].flatten(0, 1)[hit]
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-6)
    assert ((expected * rays[0, hit]).sum(-1) < 0).all()  # seen from outside


def test_turning_the_scene_is_turning_the_camera_back():
    scene, turn = ellipsoids(6, seed=2), 35.0
    yaw = torch.tensor([0.0, 0.0, math.radians(-turn)], dtype=torch.float64)
    turned = Ellipsoids(
        affine(rotations(yaw), torch.zeros(3, dtype=torch.float64)) @ scene.frames, scene.colours
    )
    a = render(scene, Cameras.of(20, 60 + turn).batch(32, 32))
    b = render(turned, Cameras.of(20, 60).batch(32, 32))
    torch.testing.assert_close(a["alpha"], b["alpha"])
    torch.testing.assert_close(a["depth"], b["depth"], rtol=0, atol=1e-5)
    assert (a["rgb"] - b["rgb"]).abs().max() > 0.01  # the lamp did not turn along


def test_a_surface_point_has_one_colour_from_every_eye():
    scene = ellipsoids(6, seed=4)
    camera = Cameras.of(10, 30).batch(12, 12)
    first = render(scene, camera, supersample=1)
    hit = first["alpha"][0, ..., 0] > 0
    points = (camera["rays_o"] + first["depth"] * camera["rays_d"])[0][hit]
    n = len(points)
    looking = Cameras.of([30.0] * n, [75.0] * n)
    looking.target = points.float()  # each camera has a single pixel, on one of the points
    second = render(scene, looking.batch(1, 1), supersample=1)
    seen = (looking.position - points).norm(dim=-1) - second["depth"][:, 0, 0, 0]
    same_point = seen.abs() < 1e-4  # nothing stands before it
    assert same_point.sum() > 10
    colours = second["rgb"][:, 0, 0]
    torch.testing.assert_close(
        colours[same_point], first["rgb"][0][hit][same_point], rtol=0, atol=1e-3
    )
    assert len(colours[same_point].unique(dim=0)) > 10


def test_supersampling_converges_to_the_coverage():
    scene, camera = ellipsoids(5, seed=5), Cameras.of(0, 10).batch(24, 24)
    exact = render(scene, camera, supersample=24)
    error = {
        n: (render(scene, camera, supersample=n)["alpha"] - exact["alpha"]).abs().sum().item()
        for n in (1, 2, 4, 8)
    }
    assert error[1] > 1.6 * error[2] > 1.6**2 * error[4] > 1.6**3 * error[8]


def test_a_pixel_is_the_mean_of_its_rays():
    """One of 16 x 16 pixels with 3 x 3 rays against a picture of 48 x 48 pixels with one each."""
    scene, cameras = ellipsoids(5, seed=8), Cameras.of(-20, 160)
    got = render(scene, cameras.batch(16, 16), supersample=3)
    rays = {
        key: value.reshape(16, 3, 16, 3, -1).transpose(1, 2).flatten(2, 3)  # [16 16 9 C]
        for key, value in render(scene, cameras.batch(48, 48), supersample=1).items()
    }
    torch.testing.assert_close(got["rgb"][0], rays["rgb"].mean(2))
    torch.testing.assert_close(got["alpha"][0], rays["alpha"].mean(2))
    hits = rays["alpha"].sum(2)
    assert ((hits > 0) & (hits < 9)).sum() > 10  # pixels on an outline
    mean_depth = rays["depth"].sum(2) / hits.clamp_min(1)  # of the rays that hit
    torch.testing.assert_close(got["depth"][0], mean_depth)
    mean_normal = torch.nn.functional.normalize(rays["normal"].sum(2), dim=-1)
    torch.testing.assert_close(got["normal"][0], mean_normal)


def test_pictures_stand_on_white():
    scene = ellipsoids(5, seed=6)
    picture = render(scene, Cameras.of().batch(24, 24))
    rgb, alpha = picture["rgb"], picture["alpha"]
    outside = alpha[..., 0] == 0
    assert outside.any()
    assert (rgb[outside] == 1).all()
    assert (picture["depth"][outside] == 0).all()
    assert (picture["normal"][outside] == 0).all()
    premultiplied = rgb - (1 - alpha)
    assert (premultiplied >= -1e-6).all()
    assert (premultiplied <= alpha * scene.colours.max() + 1e-6).all()  # light adds nothing


def test_a_batch_is_its_scenes_one_by_one_whatever_the_chunk():
    characters = [make_character("panda"), make_character("robot", 3), make_character("cat", 1)]
    times = torch.tensor([0.3])
    scenes = [
        animate(c, m, times) for c, m in zip(characters, ("dance", "jump", "walk"), strict=True)
    ]
    cameras = Cameras.of([0, 20, -30], [0, 100, 200])
    together = render(concatenate(scenes), cameras.batch(12, 16), supersample=2)
    for i, scene in enumerate(scenes):
        camera = {
            k: v[i : i + 1] if isinstance(v, torch.Tensor) else v
            for k, v in cameras.batch(12, 16).items()
        }
        for key, value in render(scene, camera, supersample=2).items():
            torch.testing.assert_close(together[key][i : i + 1], value)
    for chunk in (1, 100, 12 * 16 * 4, 2 * 12 * 16 * 4, 1 << 22):
        again = render(concatenate(scenes), cameras.batch(12, 16), supersample=2, chunk=chunk)
        for key in together:
            torch.testing.assert_close(together[key], again[key])


def test_one_scene_meets_many_cameras_and_one_camera_many_scenes():
    clip = animate(make_character("fox"), "wave", torch.linspace(0, 1, 3))
    cameras = Cameras.of(0, [0, 120, 240])
    ring = render(clip[:1], cameras.batch(16, 16))["rgb"]
    film = render(clip, Cameras.of().batch(16, 16))["rgb"]
    assert ring.shape == film.shape == (3, 16, 16, 3)
    torch.testing.assert_close(ring[0], film[0])
    with pytest.raises(ValueError, match="3 scenes can't be paired with 2 cameras"):
        render(clip, Cameras.of(0, [0, 1]).batch(16, 16))
    with pytest.raises(ValueError, match="supersample is 0"):
        render(clip, Cameras.of().batch(16, 16), supersample=0)


def test_autocast_changes_nothing():
    scene, camera = make_character("frog").at_rest(), Cameras.of().batch(16, 16)
    expected = render(scene, camera)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = render(scene, camera)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)


def test_reach_is_the_largest_distance_of_a_surface():
    scene = ellipsoids(4, seed=7)
    on_sphere = torch.nn.functional.normalize(torch.randn(20000, 3, dtype=torch.float64), dim=-1)
    frames = scene.frames[0]
    points = on_sphere @ frames[:, :3, :3].mT + frames[:, None, :3, 3]  # [E N 3]
    directions = on_sphere[:3000]
    assert scene.reach(directions).max().item() == pytest.approx(
        points.norm(dim=-1).max().item(), rel=5e-3
    )
