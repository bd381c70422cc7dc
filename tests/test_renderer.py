"""The renderer on scenes whose images are known: balls of constant density, still and moving."""

import inspect
from functools import partial

import pytest
import threestudio
import torch
import torch.nn.functional as F
from animate124.data.cameras import Cameras
from animate124.renderer import nerf_volume_renderer, samples
from animate124.renderer.compositing import accumulate
from animate124.renderer.nerf_volume_renderer import NeRFVolumeRenderer
from animate124.renderer.ray_marching import march
from animate124.renderer.recomputation import joined_parts
from animate124.renderer.samples import Rays, even_sizes
from threestudio.models.geometry.base import BaseImplicitGeometry
from torch import nn

WHITE = (1.0, 1.0, 1.0)
RED = torch.tensor([0.8, 0.2, 0.1])


class Still(BaseImplicitGeometry):
    """A scene from a formula, with the interface of threestudio's own geometries: no times.

    Its parameter `gain` multiplies density and features. `calls` lists what it was asked.
    """

    def configure(self):
        super().configure()
        self.gain = nn.Parameter(torch.ones(1))
        self.calls = []

    def of(self, density, color=RED):
        self.formula, self.color = density, color
        return self

    def density(self, points, times=None):
        self.calls.append((points, times))
        assert points.dtype == torch.float32
        args = (points,) if times is None else (points, times)
        return (self.gain * self.formula(*args))[:, None]

    def forward_density(self, points):
        return self.density(points)

    def forward(self, points, output_normal=False):
        return self.output(points, self.density(points), output_normal)

    def output(self, points, density, output_normal):
        color = self.color(points) if callable(self.color) else self.color.expand_as(points)
        out = {"density": density, "features": color * self.gain}
        return {**out, "normal": F.normalize(points, dim=-1)} if output_normal else out


class Moving(Still):
    """A scene that depends on tau, with the interface of our own geometries."""

    static = False

    def forward_density(self, points, times=None):
        return self.density(points, torch.zeros_like(points[:, :1]) if times is None else times)

    def forward(self, points, output_normal=False, times=None):
        return self.output(points, self.forward_density(points, times), output_normal)


def ball(sigma=5.0, radius=0.5):
    return lambda points: sigma * (points.norm(dim=-1) < radius).float()


def blob(scale, radius=0.5):
    """threestudio's blob_magic3d."""
    return lambda points: F.softplus(scale * (1 - points.norm(dim=-1) / radius))


def moving_ball(points, times):
    center = torch.cat([torch.zeros(len(times), 1), times - 0.5, torch.zeros(len(times), 1)], -1)
    return 20 * (points - center).norm(dim=-1).lt(0.3).float()


def renderer_of(geometry, n_updates=20, requires_normal=False, background=WHITE, **cfg):
    """A renderer in eval mode whose occupancy grid has seen the scene."""
    material = threestudio.find("no-material")(
        {"n_output_dims": 3, "color_activation": "none", "requires_normal": requires_normal}
    )
    background = threestudio.find("solid-color-background")({"color": background})
    renderer = NeRFVolumeRenderer(
        cfg, geometry=geometry, material=material, background=background
    ).train()
    for update in range(n_updates):
        renderer.update_step(0, 16 * update)
    return renderer.eval()


def still(density, color=RED, **kwargs):
    return renderer_of(Still({}).of(density, color), **kwargs)


def view(size=16, frame_times=None, **angles):
    return Cameras.of(**angles).batch(size, size, frame_times)


def sphere_chord(batch, radius):
    """Where rays enter a ball around the origin, and how long they are inside: [B H W 1]."""
    middle = -(batch["rays_o"] * batch["rays_d"]).sum(-1, keepdim=True)
    miss = (batch["rays_o"] + middle * batch["rays_d"]).norm(dim=-1, keepdim=True)
    half = (radius**2 - miss**2).clamp(min=0).sqrt()
    return middle - half, 2 * half


# ------------------------------------------------------------------------------ images


def test_constant_ball_approaches_the_closed_form():
    sigma, radius, background = 5.0, 0.5, (0.2, 0.4, 0.9)
    batch = view(24, elevation_deg=20.0, azimuth_deg=[30.0, 200.0])
    enter, chord = sphere_chord(batch, radius)
    through = torch.exp(-sigma * chord)
    exact = {
        "opacity": 1 - through,
        "comp_rgb": (1 - through) * RED + through * torch.tensor(background),
        "comp_rgb_fg": (1 - through) * RED,
        # integral of t sigma exp(-sigma (t - enter)) over the chord
        "depth": (enter + 1 / sigma) * (1 - through) - chord * through,
    }
    errors = []
    for n in (32, 128, 512):
        out = still(
            ball(sigma, radius), n_updates=16, background=background, num_samples_per_ray=n
        )(**batch)
        errors.append({k: (out[k] - v).abs().mean().item() for k, v in exact.items()})
        assert out["comp_rgb_bg"].unique(dim=0).shape[0] == 1
    for key in exact:
        coarse, middle, fine = (e[key] for e in errors)
        assert fine < middle < coarse and fine < coarse / 6, (key, errors)
        assert fine < 3e-3, (key, errors)


def test_z_variance_is_the_exponentials():
    """Depth in a dense ball is exponentially distributed: variance 1 / sigma^2."""
    sigma = 20.0
    out = still(ball(sigma, 0.8), num_samples_per_ray=1024)(**view(9))
    torch.testing.assert_close(
        out["z_variance"][0, 4, 4], torch.tensor([1 / sigma**2]), rtol=0.05, atol=0
    )
    assert out["z_variance"][0, 0, 0] == 0


def test_normals_are_mapped_to_colours_and_weighed_by_opacity():
    renderer = still(ball(200.0), requires_normal=True)
    out = renderer(**view(33, elevation_deg=0.0, azimuth_deg=0.0))
    torch.testing.assert_close(  # towards the camera on +x
        out["comp_normal"][0, 16, 16], torch.tensor([1.0, 0.5, 0.5]), atol=0.02, rtol=0
    )
    assert (out["comp_normal"][out["opacity"][..., 0] == 0] == 0).all()


def test_normals_come_when_they_are_wanted():
    batch = view()
    for requires, returns, in_eval, in_training in [
        (False, False, False, False),
        (True, False, True, False),
        (False, True, True, True),
        (True, True, True, True),
    ]:
        renderer = still(ball(), requires_normal=requires, return_comp_normal=returns)
        assert ("comp_normal" in renderer(**batch)) is in_eval
        out = renderer.train()(**batch)
        assert ("comp_normal" in out) is in_training
        assert ("normal" in out) is (requires or returns)


def test_bg_color_replaces_the_background():
    renderer, batch = still(ball()), view(8, azimuth_deg=[0.0, 90.0])
    plain = renderer(**batch)
    for color in (torch.rand(3), torch.rand(2, 3), torch.rand(2, 8, 8, 3)):
        out = renderer(**batch, bg_color=color)
        wanted = color[:, None, None] if color.ndim == 2 else color
        torch.testing.assert_close(out["comp_rgb_bg"], wanted.expand(2, 8, 8, 3))
        torch.testing.assert_close(
            out["comp_rgb"], plain["comp_rgb_fg"] + (1 - plain["opacity"]) * wanted
        )


def test_all_images_have_their_shapes():
    out = still(ball(), requires_normal=True)(
        **Cameras.of(azimuth_deg=[0.0, 90.0, 180.0]).batch(6, 10)
    )
    channels = dict(
        comp_rgb=3, comp_rgb_fg=3, comp_rgb_bg=3, opacity=1, depth=1, z_variance=1, comp_normal=3
    )
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        k: (3, 6, 10, c) for k, c in channels.items()
    }


# ------------------------------------------------------------------------------ time


def test_a_clip_in_one_call_equals_its_frames():
    renderer = renderer_of(Moving({}).of(moving_ball), n_updates=40)
    cameras = Cameras.of(azimuth_deg=[0.0, 5.0, 10.0, 15.0])
    times = torch.tensor([0.0, 0.3, 0.6, 1.0])
    renderer.geometry.calls.clear()
    clip = renderer(**cameras.batch(16, 16, times))
    assert len(renderer.geometry.calls) <= 3  # to prune, to render, and for what is hidden
    for i in range(4):
        camera = Cameras.of(azimuth_deg=cameras.azimuth_deg[i])
        frame = renderer(**camera.batch(16, 16, times[i : i + 1]))
        for key, image in frame.items():
            torch.testing.assert_close(clip[key][i : i + 1], image, atol=1e-6, rtol=0)
    # and it moves: the ball's middle goes from y = -0.5 to 0.5, left to right as azimuth 0 sees it
    columns = torch.arange(16.0)
    shadow = clip["opacity"][..., 0].sum(1)
    middle = (shadow * columns).sum(-1) / shadow.sum(-1)
    assert (middle[1:] > middle[:-1] + 1).all()


def test_without_frame_times_the_time_is_zero():
    renderer = renderer_of(Moving({}).of(moving_ball), n_updates=40)
    batch = view(12, torch.zeros(1))
    at_zero = renderer(**batch)
    batch.pop("frame_times")
    torch.testing.assert_close(renderer(**batch)["comp_rgb"], at_zero["comp_rgb"])


def test_a_static_geometry_is_not_asked_about_times():
    geometry = Moving({}).of(lambda points, times: ball()(points) + 0 * times[:, 0])
    geometry.static = True
    geometry.density = lambda points, times=None: ball()(points)[:, None] * (times == 0)
    renderer = renderer_of(geometry)
    assert renderer(**view(8, torch.ones(1)))["opacity"].max() > 0.9


def test_a_stock_geometry_ignores_frame_times():
    renderer, batch = still(ball()), view(8)
    wanted = renderer(**batch)
    batch["frame_times"] = torch.ones(1)
    torch.testing.assert_close(renderer(**batch), wanted)


def test_occupancy_follows_a_moving_ball():
    """No frame loses its ball to the grid, wherever in its path it is."""
    renderer = renderer_of(Moving({}).of(moving_ball), n_updates=60)
    batch = Cameras.of(azimuth_deg=[40.0] * 5).batch(24, 24, torch.linspace(0.1, 0.9, 5))
    pruned = renderer(**batch)["opacity"]
    renderer.estimator.fill()
    full = renderer(**batch)["opacity"]
    assert (pruned - full).abs().mean((1, 2, 3)).max() < 1e-3
    assert (full > 0.9).float().mean((1, 2, 3)).min() > 0.02


# ------------------------------------------------------------------------------ pruning


@pytest.mark.parametrize(
    "scale, kept, marched, hit",
    [(10.0, 589e3, 651e3, 0.325), (100.0, 234e3, 441e3, 0.246)],
    ids=["blob", "sharp"],
)
def test_as_many_samples_as_the_original(scale, kept, marched, hit):
    """As measured in stage 1: reference and random camera, 128 x 128, 256 samples.

    `hit`: rays with at least one sample that is kept.
    """
    renderer = still(blob(scale)).train()
    batch = view(128, elevation_deg=[0.0, 25.0], azimuth_deg=[0.0, 70.0])
    rays = Rays(batch["rays_o"].reshape(-1, 3), batch["rays_d"].reshape(-1, 3), None, None)
    grid = renderer.estimator
    n_marched = len(
        march(
            rays.origins,
            rays.directions,
            grid.binaries[0],
            grid.aabbs[0],
            renderer.step_size,
            jitter=torch.rand(len(rays)),
        )[0]
    )
    ray_indices = renderer.sample(rays).ray_indices
    assert len(ray_indices) == pytest.approx(kept, rel=0.05)
    assert n_marched == pytest.approx(marched, rel=0.05)
    assert len(ray_indices.unique()) / len(rays) == pytest.approx(hit, rel=0.05)


@pytest.mark.parametrize("prune_alpha_threshold", [False, True])
def test_pruning_hardly_changes_the_image(prune_alpha_threshold):
    """By less than 1e-3 on average, for a blob as sharp as a trained one, and much less away from
    the outline, where rays graze it and miss what the thresholds of alpha leave out."""

    def colors(points):
        return torch.sigmoid(4 * points)

    cfg = {"eval_chunk_size": 0, "prune_alpha_threshold": prune_alpha_threshold}
    pruned = still(blob(100.0), colors, n_updates=40, **cfg)
    full = still(blob(100.0), colors, grid_prune=False, **cfg)
    batch = view(64, elevation_deg=20.0, azimuth_deg=30.0)
    with torch.no_grad():
        wanted, got = full(**batch), pruned(**batch)
    change = (got["comp_rgb"] - wanted["comp_rgb"]).abs()
    assert change.mean() < 1e-3
    outline = (sphere_chord(batch, 0.45)[1] == 0) & (sphere_chord(batch, 0.55)[1] > 0)
    assert change[~outline[..., 0]].mean() < 1e-4 and change[~outline[..., 0]].max() < 0.01
    assert (wanted["opacity"][~outline] > 0.999).float().mean() > 0.15
    assert len(pruned.geometry.calls[-1][0]) < len(full.geometry.calls[-1][0]) / 5


def field(blob_scale, detail, normal_type="finite_difference"):
    """Our own geometry with random entries of this size in its grids."""
    encoding = {"n_levels": 4, "log2_hashmap_size": 10}
    cfg = {"density_blob_scale": blob_scale, "normal_type": normal_type}
    geometry = threestudio.find("animate124-implicit-volume")(
        {**cfg, "pos_encoding_config": encoding}
    )
    for grid in (geometry.encoding.encoding.encoding, geometry.encoding.encoding.encoding_time):
        nn.init.normal_(grid.params, std=detail)
    return geometry


def clip_gradients(renderer, size=20):
    """Outputs of a clip, and the gradients of a loss that reads colour, normals and opacity."""
    batch = Cameras.of([0.0, 20.0], [0.0, 70.0]).batch(size, size, torch.tensor([0.2, 0.7]))
    target = torch.rand(2, size, size, 3, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in renderer.geometry.parameters() if p.requires_grad]
    out = renderer(**batch)
    normal = out["comp_normal"]
    loss = (out["comp_rgb"] - target).square().sum() + out["opacity"].mean()
    loss = loss + (normal[:, 1:] - normal[:, :-1]).square().sum()
    return out, torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("blob_scale, detail, left_out", [(10, 1.0, 0), (100, 1.0, 0.05)])
def test_samples_that_are_not_shaded_change_less_than_a_thousandth(
    blob_scale, detail, left_out, monkeypatch
):
    """Of any pixel, and of each parameter's gradient."""
    renderer = renderer_of(field(blob_scale, detail), randomized=False, return_comp_normal=True)
    got, got_gradients = clip_gradients(renderer.train())
    features = got["features"].unique(dim=0)
    assert len(features) <= (1 - left_out) * len(got["weights"])
    monkeypatch.setattr(nerf_volume_renderer, "MIN_SHADED_TRANSMITTANCE", 0.0)
    wanted, gradients = clip_gradients(renderer)
    assert len(got["weights"]) == len(wanted["weights"])
    for key in ("comp_rgb", "comp_normal"):
        assert (got[key] - wanted[key]).abs().max() < 1e-3
    torch.testing.assert_close(got["density"], wanted["density"], rtol=1e-5, atol=1e-5)
    for a, b in zip(got_gradients, gradients, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


def test_near_and_far_cut_the_rays():
    whole = still(ball(1.0), grid_prune=False)(**view(9))
    near = still(ball(1.0), grid_prune=False, far_plane=2.5)(**view(9))
    far = still(ball(1.0), grid_prune=False, near_plane=2.5)(**view(9))
    assert near["depth"].max() < 2.5 and 0.3 < near["opacity"].max() < 0.5
    torch.testing.assert_close(
        (1 - near["opacity"]) * (1 - far["opacity"]), 1 - whole["opacity"], atol=0.03, rtol=0
    )


def test_an_empty_scene_shows_the_background_and_has_gradients():
    renderer = still(lambda points: torch.zeros(len(points)), background=(0.1, 0.5, 0.9))
    assert not renderer.estimator.binaries.any()
    for mode in (True, False):
        out = renderer.train(mode)(**view(6, azimuth_deg=[0.0, 90.0]))
        assert (out["opacity"] == 0).all() and (out["depth"] == 0).all()
        torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_bg"])
        out["comp_rgb"].sum().backward()
        assert (renderer.geometry.gain.grad == 0).all()


def test_rays_that_miss_the_box_are_empty_rays():
    renderer, batch = still(ball(5.0, 2.0)).train(), view(8)
    batch["rays_d"][:, :, :4] *= -1  # the left half looks away
    out = renderer(**batch)
    assert (out["opacity"][:, :, :4] == 0).all() and (out["opacity"][:, :, 4:] > 0.9).any()
    sum(out[k].sum() for k in ("comp_rgb", "depth", "z_variance")).backward()
    assert renderer.geometry.gain.grad.isfinite().all()


# ------------------------------------------------------------------------------ training and eval


def test_training_returns_its_samples():
    renderer = still(ball(), requires_normal=True, return_normal_perturb=True).train()
    batch = view(12, azimuth_deg=[0.0, 90.0])
    out = renderer(**batch)
    n, rays = len(out["ray_indices"]), 2 * 12 * 12
    assert {k: tuple(out[k].shape) for k in ("weights", "t_points", "t_intervals", "density")} == {
        k: (n, 1) for k in ("weights", "t_points", "t_intervals", "density")
    }
    for key in ("t_dirs", "points", "normal", "features", "normal_perturb"):
        assert out[key].shape == (n, 3)
    opacity = accumulate(out["weights"][:, 0], None, out["ray_indices"], rays)
    torch.testing.assert_close(opacity.view(2, 12, 12, 1), out["opacity"])
    origin = batch["rays_o"].reshape(-1, 3)[out["ray_indices"]]
    torch.testing.assert_close(out["points"], origin + out["t_points"] * out["t_dirs"])
    assert (out["t_intervals"] - renderer.step_size).abs().max() < 1e-6
    spread = (out["normal_perturb"] - out["normal"]).norm(dim=-1)
    assert 0 < spread.median() < 0.1


def test_gradients_are_those_of_finite_differences():
    renderer, batch = still(blob(10.0), randomized=False).train(), view(10)
    gain, target = renderer.geometry.gain, torch.rand(1, 10, 10, 3)

    def loss():
        out = renderer(**batch)
        return ((out["comp_rgb"] - target) ** 2).sum() + out["depth"].mean()

    loss().backward()
    with torch.no_grad():
        gain += 1e-2
        above = loss()
        gain -= 2e-2
        difference = (above - loss()) / 2e-2
    torch.testing.assert_close(gain.grad[0], difference, rtol=0.02, atol=0)


def test_training_shifts_the_lattice_and_eval_does_not():
    batch = view(8)
    renderer = still(blob(10.0))
    torch.testing.assert_close(renderer(**batch), renderer(**batch), rtol=0, atol=0)
    first, second = (renderer.train()(**batch) for _ in range(2))
    assert not torch.equal(first["depth"], second["depth"])
    torch.testing.assert_close(first["opacity"], second["opacity"], atol=0.1, rtol=0)
    steady = still(blob(10.0), randomized=False)
    torch.testing.assert_close(steady(**batch)["depth"], steady.train()(**batch)["depth"])


@pytest.mark.parametrize("eval_chunk_size", [100, 999])
def test_chunked_eval_equals_unchunked(eval_chunk_size):
    whole = renderer_of(Moving({}).of(moving_ball), requires_normal=True, eval_chunk_size=0)
    chunked = renderer_of(
        Moving({}).of(moving_ball),
        n_updates=0,
        requires_normal=True,
        eval_chunk_size=eval_chunk_size,
    )
    chunked.load_state_dict(whole.state_dict())
    batch = Cameras.of(azimuth_deg=[0.0, 30.0]).batch(16, 16, torch.tensor([0.2, 0.9]))
    whole.geometry.calls.clear()
    torch.testing.assert_close(chunked(**batch), whole(**batch))
    at_once = [len(points) for points, _ in whole.geometry.calls]
    parts = [part for size in at_once for part in even_sizes(size, eval_chunk_size)]
    assert [len(points) for points, _ in chunked.geometry.calls] == parts
    assert len(parts) > len(at_once)


@pytest.mark.parametrize("normal_type", ["finite_difference", "analytic", "pred"])
def test_training_in_chunks_has_the_gradients_of_training_at_once(normal_type):
    geometry = field(100.0, 0.1, normal_type)
    cfg = {"randomized": False, "return_comp_normal": True}
    whole = renderer_of(geometry, train_chunk_size=0, **cfg).train()
    out, gradients = clip_gradients(whole)
    n = len(out["weights"])
    for size in (n // 3, n - 1, n + 1):
        chunked = renderer_of(geometry, n_updates=0, train_chunk_size=size, **cfg).train()
        chunked.load_state_dict(whole.state_dict())
        again, chunk_gradients = clip_gradients(chunked)
        torch.testing.assert_close(again["comp_normal"], out["comp_normal"])
        for a, b in zip(chunk_gradients, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_chunks_that_run_again_have_exact_gradients():
    """In float64, to the last digits; and only the last chunks' graphs are held."""
    geometry = field(10.0, 0.1).double()
    points, times = torch.rand(50, 3).double() - 0.5, torch.rand(50, 1).double()
    weights = torch.randn(50, 3).double()
    networks = {parameter.data_ptr() for parameter in geometry.parameters()}
    gradients, held = [], []

    def count(saved):  # hidden layers of the networks
        hidden = saved.ndim == 2 and saved.shape[-1] == 64 and saved.data_ptr() not in networks
        held[-1] += len(saved) if hidden else 0
        return saved

    for sizes, most in (([50], 0), ([30, 20], 30), ([1, *[7] * 7], 15)):
        held.append(0)
        rows = zip(points.split(sizes), times.split(sizes), strict=True)
        calls = [partial(geometry, own, output_normal=True, times=tau) for own, tau in rows]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            out = joined_parts(calls, sizes, most)
        loss = (out["normal"] * weights).sum() + (out["features"] * weights).sum()
        loss = loss + out["density"].square().sum()
        gradients.append(torch.autograd.grad(loss, [*geometry.parameters()]))
    for others in gradients[1:]:
        for a, b in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())
    assert held[1] / held[0] == pytest.approx(20 / 50, abs=0.05)
    assert held[2] / held[0] == pytest.approx(14 / 50, abs=0.05)


def test_image_by_image_it_is_the_same_clip(monkeypatch):
    renderer = renderer_of(Moving({}).of(moving_ball), n_updates=40)
    batch = Cameras.of(azimuth_deg=[0.0, 5.0, 10.0]).batch(16, 16, torch.tensor([0.0, 0.3, 1.0]))
    together = renderer(**batch)
    monkeypatch.setattr(samples, "MANY_SAMPLES", 1)
    renderer.geometry.calls.clear()
    torch.testing.assert_close(renderer(**batch), together)
    assert len(renderer.geometry.calls) >= 6
    assert all(len(times) == 1 for _, times in renderer.geometry.calls)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    out, gradient = {}, {}
    renderer = still(blob(30.0), requires_normal=True, randomized=False)
    batch = view(32, azimuth_deg=[0.0, 50.0])
    for device in ("cpu", "cuda"):
        renderer.to(device)
        for module in (renderer.geometry, renderer.material, renderer.background):
            module.to(device)
        renderer.geometry.color = RED.to(device)
        renderer.geometry.zero_grad()
        on_device = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        rendered = renderer(**on_device)
        (rendered["comp_rgb"].square().mean() + rendered["depth"].mean()).backward()
        out[device] = {k: v.detach().cpu() for k, v in rendered.items()}
        gradient[device] = renderer.geometry.gain.grad.cpu().clone()  # `to` moves it along
    torch.testing.assert_close(out["cuda"], out["cpu"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient["cuda"], gradient["cpu"], atol=1e-4, rtol=1e-4)


def test_pictures_alone_are_the_same_pictures():
    renderer = still(ball()).train()
    renderer.cfg.randomized = False
    whole, alone = renderer(**view()), renderer(**view(), pictures_only=True)
    assert {k: v for k, v in alone.items() if v.ndim != 4} == {}
    torch.testing.assert_close(alone, {k: v for k, v in whole.items() if v.ndim == 4})


def test_num_samples_per_ray_sets_the_step():
    counts = []
    for n in (64, 128):
        renderer = still(ball(), num_samples_per_ray=n).train()
        assert renderer.step_size == pytest.approx(3.464 / n)
        counts.append(len(renderer(**view())["ray_indices"]))
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.1)


def test_autocast_does_not_reach_the_geometry():
    matrix = torch.randn(3, 64)

    def density(points):
        features = points @ matrix  # bfloat16 under autocast
        assert features.dtype == torch.float32
        return blob(10.0)(points) + 0 * features.sum(-1)

    renderer, batch = still(density), view(8)
    wanted = renderer(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = renderer(**batch)
        renderer.train().update_step(0, 0)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)


# ------------------------------------------------------------------------------ the grid's upkeep


def test_update_step_looks_every_16_training_steps():
    renderer = still(ball(), n_updates=0).train()

    def asked(step, **kwargs):
        renderer.geometry.calls.clear()
        renderer.update_step(0, step, **kwargs)
        return sum(len(points) for points, _ in renderer.geometry.calls)

    assert [asked(step) for step in (0, 1, 15, 16, 17)] == [32**3, 0, 0, 32**3, 0]
    assert 32**3 / 4 <= asked(256) < 32**3
    assert asked(32, on_load_weights=True) == 0
    renderer.eval()
    assert asked(32) == 0
    renderer = still(ball(), n_updates=0, grid_prune=False).train()
    assert asked(0) == 0 and renderer.estimator.binaries.all()


def test_the_grid_of_a_moving_scene_is_updated_at_random_times():
    renderer = renderer_of(Moving({}).of(moving_ball), n_updates=1)
    ((points, times),) = renderer.geometry.calls
    assert times.shape == (32**3, 1)
    torch.testing.assert_close(times.mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    assert times.std() > 0.28
    assert torch.corrcoef(torch.cat([points, times], -1).T)[3, :3].abs().max() < 0.03


def test_a_checkpoint_brings_the_grid():
    trained = still(ball())
    state = trained.state_dict()
    assert {k for k in state if k.startswith("estimator")} == {
        "estimator.resolution",
        "estimator.aabbs",
        "estimator.occs",
        "estimator.binaries",
    }
    fresh = still(ball(), n_updates=0)
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh(**view(8)), trained(**view(8)), rtol=0, atol=0)


# ------------------------------------------------------------------------------ bad input


def test_bad_input_is_explained():
    renderer = still(ball(), n_updates=0)
    with pytest.raises(ValueError, match="num_samples_per_ray is 0"):
        still(ball(), num_samples_per_ray=0)
    forward = inspect.unwrap(NeRFVolumeRenderer.forward)  # without the tests' check of shapes
    for name, shape in (("frame_times", [3]), ("light_positions", [3, 3])):
        batch = {**view(4, azimuth_deg=[0.0, 1.0]), name: torch.zeros(shape)}
        with pytest.raises(ValueError, match=f"{name} has 3 entries for 2 images"):
            forward(renderer, **batch)
    with pytest.raises(ValueError, match=r"bg_color has the shape \[5, 3\]; for 2 images"):
        renderer(**view(4, azimuth_deg=[0.0, 1.0]), bg_color=torch.zeros(5, 3))
