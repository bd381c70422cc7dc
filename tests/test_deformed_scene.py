"""A scene whose points a deformation moves: as the static one at x_c, seen and followed."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import threestudio
import torch
import torch.nn.functional as F
from animate124.data.cameras import Cameras
from animate124.evaluation.suite import DISTILLED
from animate124.geometry import deformation
from animate124.geometry.implicit_volume import EMPTY, ImplicitVolume
from animate124.geometry.otypes import is_deformed
from animate124.renderer.nerf_volume_renderer import NeRFVolumeRenderer
from animate124.renderer.samples import Samples
from animate124.system import trained
from animate124.system.trained import Scene, load_scene
from threestudio.launch import main, parser

ROOT = Path(__file__).parents[1]
GRID = {"n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.5}
MOTION = {"otype": "HashGridDeformation", "deformation_cells": [2, 4, 8], "deformation_spans": 4}
STATIC = {"otype": "HashGridSpatialTime", "static": True}


def make(otype, rough=1.0, **config) -> ImplicitVolume:
    """rough: how large entries of the hash grid are."""
    volume = ImplicitVolume({"pos_encoding_config": {**GRID, **otype}, **config})
    torch.nn.init.normal_(volume.encoding.encoding.encoding.params, std=rough)
    return volume


def bend(volume, size=0.08, turn=0.05):
    """Moves its points, without folding space."""
    deformation = volume.deformation
    torch.nn.init.normal_(deformation.whole.twist, std=turn)
    for lattice in deformation.lattices:
        torch.nn.init.normal_(lattice.nodes, std=size / (lattice.nodes.shape[-1] - 1))
    return volume


def shift(volume, vector):
    """Moves all of it by a vector in the world at tau = 1, evenly up to then or nearly so."""
    twist = volume.deformation.whole.twist
    spans = len(twist) - 3
    with torch.no_grad():  # linear in time: coefficients at the splines' middles
        middle = torch.arange(-1, spans + 2)[:, None] / spans
        twist[:, 3:] = middle * torch.tensor(vector) / (2 * volume.cfg.radius)
    return volume


def pair(**config) -> tuple[ImplicitVolume, ImplicitVolume]:
    """A deformed scene, and the static one that it is of."""
    deformed, static = bend(make(MOTION, **config)), make(STATIC, **config)
    static.load_state_dict(deformed.state_dict(), strict=False)
    return deformed, static


def points_in_box(n=200, radius=0.9):
    return (torch.rand(n, 3) * 2 - 1) * radius


def canonical(volume, points, times):
    """x_c in the world, by hand."""
    radius = volume.cfg.radius
    return (volume.deformation((points / radius + 1) / 2, times) * 2 - 1) * radius


# ------------------------------------------------------------------------------ the field


@pytest.mark.parametrize("bias", ["blob_magic3d", "blob_dreamfusion", 0.5])
def test_a_moving_scene_is_the_static_one_where_its_points_were(bias):
    deformed, static = pair(density_bias=bias, radius=0.8)
    points = points_in_box(radius=1.0)  # some are outside
    for times in (torch.rand(1, 1), torch.rand(200, 1), torch.rand(10, 1).repeat(20, 1)):
        x_c = canonical(deformed, points, times)
        assert (x_c - points).norm(dim=-1).max() > 0.02
        found, expected = deformed(points, times=times), static(x_c)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        density = deformed.forward_density(points, times)
        torch.testing.assert_close(density, found["density"])
        torch.testing.assert_close(
            deformed.export(points, times)["features"], found["features"], atol=1e-5, rtol=1e-4
        )


def test_at_the_start_it_is_the_static_one_to_the_bit():
    deformed, static = pair()
    points = points_in_box()
    expected = static(points)
    for times in (None, torch.zeros(1, 1), torch.zeros(200, 1)):
        found = deformed(points, times=times)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["finite_difference", "analytic"])
def test_normals_are_turned_with_the_surface(kind):
    """n is along the gradient of density(x_c(x)): F^T of the one at x_c."""
    deformed, _ = pair(normal_type=kind, density_bias="blob_dreamfusion")
    with torch.no_grad():  # smooth over a stencil: a blob, and a motion of nodes far apart
        deformed.density_network.layers[2].weight.zero_()
        for lattice in deformed.deformation.lattices:
            lattice.nodes.zero_()
        deformed.deformation.lattices[0].nodes[3:].copy_(0.12 * torch.randn(3, 3, 3, 3))
        cell = (0.1 + 0.8 * torch.rand(300, 3)) / 2  # of the coarsest lattice
    points = 2 * cell - 1
    at = torch.full((1, 1), 0.9)
    with torch.no_grad():
        deformed.deformation.whole.twist[:, 3:] = 0  # turned, and no point leaves its cell
        deformed.deformation.whole.twist[:, :3] *= 0.1
    found = deformed(points, output_normal=True, times=at)["normal"]
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(deformed.forward_density(leaf, at).sum(), leaf)
    agree = (found * -F.normalize(gradient, dim=-1)).sum(-1)
    assert agree.min() > 0.9999
    unturned = deformed(canonical(deformed, points, at), output_normal=True)["normal"]
    assert (unturned * found).sum(-1).min() < 0.99


def test_the_gradient_in_time_and_space_reaches_the_deformation_alone():
    volume = bend(make({**MOTION, "freeze_canonical": True}))
    volume(points_in_box(), times=torch.rand(1, 1))["density"].sum().backward()
    trained = {name for name, p in volume.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in volume.named_parameters() if ".deformation." in name}
    assert all(p.grad.abs().max() > 0 for p in volume.parameters() if p.grad is not None)


def test_which_geometries_are_deformed():
    assert is_deformed({"pos_encoding_config": MOTION})
    assert not is_deformed({"pos_encoding_config": STATIC})
    assert not is_deformed({"pos_encoding_config": {}}) and not is_deformed({})


@pytest.mark.parametrize("cells", [[], [8, 4], [4, 4], [0, 2], [2.5], [4, 500]])
def test_lattices_that_are_none_are_refused(cells):
    with pytest.raises(ValueError, match=r"deformation_cells is .* larger than the one before"):
        make({**MOTION, "deformation_cells": cells})


def test_a_scene_that_moves_by_more_lattices_is_refused():
    saved = bend(make({**MOTION, "deformation_cells": [2, 4, 8]})).state_dict()
    with pytest.raises(ValueError, match=r"moves by 3 lattices, of which .* describes 2: .* lost"):
        make({**MOTION, "deformation_cells": [2, 4]}).load_state_dict(saved, strict=False)
    again = make({**MOTION, "deformation_cells": [2, 4, 8]})
    again.load_state_dict(saved)
    assert again.deformation.lattices[2].nodes.any()


def test_rigidity_weighs_the_body_and_empty_space_a_little():
    """A stretch of one half of the box costs more where the body is."""

    def cost(side):
        volume = make({**MOTION, "deformation_cells": [4], "deformation_spans": 1})
        volume.density_network.layers[2].weight.data.zero_()
        bias = 500 * (volume.bbox.new_tensor([0, 0, 0.5]) * side)
        volume.density_bias = lambda points: (points @ bias)[..., None] - 25
        nodes = volume.deformation.lattices[0].nodes
        nodes.data[:, 2, 3] = nodes.data[:, 2, 4] = 0.1  # upper half, stretched along z
        nodes.data[0] = 0
        torch.manual_seed(0)
        return volume.rigidity(moments=64)

    body, empty = cost(1), cost(-1)
    assert float((body["arap"] / empty["arap"]).detach()) == pytest.approx(1 / EMPTY, rel=0.01)
    torch.testing.assert_close(body["fold"], empty["fold"])  # everywhere alike
    none = make(MOTION).rigidity()
    assert none["arap"] == 0 and none["fold"] == 0


def test_a_scene_laid_out_as_in_release_0_1_is_moved():
    settings = {**GRID, "log2_hashmap_size": 19, "per_level_scale": 2**0.5}
    static, deformed = (make({**otype, **settings}) for otype in (STATIC, MOTION))
    grid = static.encoding.encoding.encoding
    size = replace(grid.spec, float64_scale=True).n_params
    assert size != grid.spec.n_params
    saved = static.state_dict() | {"encoding.encoding.encoding.params": torch.randn(size)}
    del saved["encoding.encoding.encoding_time.params"]
    for volume in (static, deformed):
        volume.take_layout(saved, "")
        missing = volume.load_state_dict(saved, strict=False).missing_keys
        assert all("encoding_time" in key or ".deformation." in key for key in missing)
    points = points_in_box()
    assert torch.equal(deformed(points)["density"], static(points)["density"])
    bend(deformed)
    at = torch.rand(1, 1)
    torch.testing.assert_close(
        deformed.forward_density(points, at),
        static.forward_density(canonical(deformed, points, at)),
        atol=1e-4,
        rtol=1e-3,
    )


# ------------------------------------------------------------------------------ seen


def renderer_of(geometry, updates, **cfg) -> NeRFVolumeRenderer:
    material = threestudio.find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid"})
    background = threestudio.find("solid-color-background")({"color": [1, 1, 1]})
    cfg = {"num_samples_per_ray": 64, "return_comp_normal": False, **cfg}
    renderer = NeRFVolumeRenderer(cfg, geometry=geometry, material=material, background=background)
    for update in range(updates):
        renderer.train().update_step(0, 16 * update)
    return renderer.eval()


def body(radius=0.2, **otype) -> ImplicitVolume:
    """A hard ball in the middle, in colours."""
    volume = make({**MOTION, **otype}, density_bias="blob_magic3d", density_blob_std=radius)
    volume.density_bias = lambda x: 400 * (radius - x.norm(dim=-1, keepdim=True))
    volume.density_network.layers[2].weight.data.zero_()
    return volume


def lost(volume, moments) -> torch.Tensor:
    """The share of a frame's opacity that the grid hides after one update, at four times."""
    renderer, tau = renderer_of(volume, 1, occupancy_moments=moments), torch.linspace(0.1, 1, 4)
    batch = Cameras.of(azimuth_deg=[40.0] * 4).batch(24, 24, tau)
    with torch.no_grad():
        pruned = renderer(**batch)["opacity"].sum((1, 2, 3))
        renderer.estimator.fill()
        return 1 - pruned / renderer(**batch)["opacity"].sum((1, 2, 3))


def test_after_one_update_the_grid_has_the_places_where_a_far_motion_arrives():
    volume = shift(body(), [0.6, 0.3, -0.2])  # three times as far as the body is wide
    assert lost(volume, 8).max() < 0.1
    assert lost(volume, 1).max() > 2 * lost(volume, 8).max()


# ------------------------------------------------------------------------------ followed


def clip_of(device="cpu"):
    batch = Cameras.of(azimuth_deg=[40.0, 60.0, 80.0]).batch(24, 24, torch.tensor([0.1, 0.4, 0.9]))
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def test_the_renderer_knows_which_samples_are_of_which_moment(monkeypatch):
    volume = bend(body())
    renderer = renderer_of(volume, 1, prune_alpha_threshold=False, return_comp_normal=True).train()
    results = []
    for counts in (Samples.of_images, lambda samples: None):
        torch.manual_seed(1)
        with monkeypatch.context() as patch:
            patch.setattr(Samples, "of_images", counts)
            if not results:  # nobody has to look for runs of equal times
                patch.delattr(deformation, "runs")
            rendered = renderer(**clip_of())
        rendered["comp_normal"].square().mean().backward()
        gradient = volume.deformation.whole.twist.grad.clone()
        volume.zero_grad()
        results.append({**{k: v.detach() for k, v in rendered.items()}, "gradient": gradient})
    assert results[0]["gradient"].abs().max() > 0
    torch.testing.assert_close(*results)


@pytest.mark.gpu
def test_a_clip_is_sampled_ahead_of_what_the_gpu_still_has_to_do():
    volume = bend(body()).cuda()
    with torch.device("cuda"):
        renderer = renderer_of(volume, 1, prune_alpha_threshold=False).train()
    batch, made = clip_of("cuda"), torch.cuda.Event()
    made.record()
    results, before = [], torch.cuda.Event()
    for event in (None, made, made):  # the second one compiles nothing any more
        torch.manual_seed(1)
        torch.cuda.synchronize()
        torch.cuda._sleep(4 * 10**9)  # seconds
        before.record()
        results.append(renderer(**batch, made=event))
        waited = before.query()
    assert not waited  # neither for a size
    for result in results[1:]:
        torch.testing.assert_close(result["comp_rgb"], results[0]["comp_rgb"])
        assert torch.equal(result["t_points"], results[0]["t_points"])


def scene_of(geometry, **cfg) -> Scene:
    system = threestudio.find("animate124-system")(
        {
            "geometry_type": "animate124-implicit-volume",
            "geometry": {"pos_encoding_config": GRID},
            "material_type": "no-material",
            "background_type": "solid-color-background",
            "renderer_type": "animate124-nerf-volume-renderer",
        }
    )
    system.geometry, system.renderer = geometry, renderer_of(geometry, 0, **cfg)
    return Scene(system, None)


def test_points_that_are_followed_have_the_density_and_colour_that_they_had():
    volume = bend(make(MOTION, density_bias="blob_magic3d"), turn=0.1).requires_grad_(False)
    points, taus = points_in_box(2000, 1.2), torch.tensor([0.0, 0.35, 0.7, 1.0])
    places, errors = volume.tracks(points, taus)
    assert places.shape == (4, 2000, 3) and errors.max() < 2e-6
    torch.testing.assert_close(places[0], points, atol=1e-6, rtol=0)
    assert (places[3] - points).norm(dim=-1).mean() > 0.05
    first = volume(points)
    for tau, there in zip(taus, places, strict=True):
        found = volume(there, times=tau.view(1, 1))
        torch.testing.assert_close(found, first, atol=2e-3, rtol=1e-3)
        again = canonical(volume, there, tau.view(1, 1))  # back, of the scene's size 2
        assert (again - points).norm(dim=-1).max() < 2e-4


def surface_seen(render, batch):
    """Points where rays of the first frame end, [N 3], of pixels that are opaque in it."""
    opaque = render["opacity"][0, ..., 0] > 0.95
    depth = render["depth"][0] / render["opacity"][0].clamp(min=1e-6)
    return (batch["rays_o"][0] + depth * batch["rays_d"][0])[opaque], opaque


def project(points, batch, frame, size):
    """Pixels (x, y) of points in a frame, and how far they are from its camera."""
    c2w, focal = batch["c2w"][frame], size / 2 / torch.tan(batch["fovy"][frame] / 2)
    right, up, backward = ((points - c2w[:3, 3]) @ c2w[:3, :3]).unbind(-1)
    ahead = torch.stack([right, -up], dim=-1) / -backward[:, None]
    return size / 2 + focal * ahead, (points - c2w[:3, 3]).norm(dim=-1)


def check_seen(scene, cameras, tau, size):
    """Surface points of the first frame are seen at the others' places: their depth and colour."""
    render, batch = scene.look(cameras, tau, size, size), cameras.batch(size, size, tau)
    points, opaque = surface_seen(render, batch)
    assert len(points) > 100
    for frame, places in enumerate(scene.tracks(points, tau)):
        pixels, distance = project(places, batch, frame, size)
        column, row = pixels.floor().long().unbind(-1)
        opacity, depth = (render[key][frame, row, column, 0] for key in ("opacity", "depth"))
        inside = opacity > 0.9
        assert inside.float().mean() > 0.6
        # the place's distance is the picture's depth there, unless others came before it
        near = (distance - depth / opacity).abs() < 0.03
        assert near[inside].float().mean() > 0.9
        seen = inside & near
        was, now = render["comp_rgb"][0][opaque][seen], render["comp_rgb"][frame, row, column]
        unmoved = render["comp_rgb"][frame][opaque][seen]  # colours at the pixels of before
        assert frame == 0 or (now[seen] - was).abs().mean() < 0.3 * (unmoved - was).abs().mean()


def test_a_point_that_is_followed_is_seen_where_it_went():
    volume = shift(body(radius=0.3), [0.25, 0.2, 0.15])
    volume.deformation.lattices[1].nodes.data[1:].normal_(std=0.01)
    scene = scene_of(volume, num_samples_per_ray=512)
    scene.system.renderer.estimator.fill()
    check_seen(scene, Cameras.of(15.0, torch.full((2,), 30.0)), torch.tensor([0.0, 0.8]), 64)


BENT = [f"geometry.encoding.encoding.deformation.{part}" for part in ("whole", "lattices")]
EXACT = "guidance_scale=1.5", "half_precision_weights=false"


@pytest.mark.slow
def test_the_surface_of_a_trained_toy_is_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the toy configs name the priors from here
    words = ["tag=toy", "use_timestamp=false", f"exp_root_dir={tmp_path}"]
    words += ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"]
    words += ["trainer.limit_val_batches=0", "trainer.limit_test_batches=0"]
    trial = None
    for stage, steps in ((1, 60), (2, 40)):
        args = ["--config", f"configs/toy/deformation-stage{stage}.yaml", "--train"]
        start = [f"system.weights={trial / 'ckpts/last.ckpt'}"] if trial else []
        start.append(f"trainer.max_steps={steps}")
        if stage == 2:  # gently: so few steps of the config's size would fold the scene
            start += [f"system.optimizer.params.{name}.lr=0.002" for name in BENT]
            start += [f"system.guidance.{word}" for word in EXACT]
            start += DISTILLED
        trial = Path(main(parser().parse_args(args), [*words, *start], "animate124"))
    assert trial is not None
    scene = load_scene(trial / "configs" / "parsed.yaml", trial / "ckpts" / "last.ckpt")
    scene.system.to("cpu")
    tau, cameras = torch.tensor([0.0, 0.5, 1.0]), Cameras.of(5.0, torch.zeros(3))
    check_seen(scene, cameras, tau, 96)

    points, _ = surface_seen(scene.look(cameras, tau, 96, 96), cameras.batch(96, 96, tau))
    geometry = scene.system.geometry
    first, places = geometry(points), scene.tracks(points, tau)
    assert (places[1:] - points).norm(dim=-1).mean() > 0.03
    for at, there in zip(tau.view(-1, 1, 1), places, strict=True):
        back = canonical(geometry, there, at)
        assert (back - points).norm(dim=-1).max() < 2e-4  # 1e-4 of the scene's size, 2
        torch.testing.assert_close(geometry(there, times=at), first, atol=1e-3, rtol=1e-3)


def test_who_stands_still_or_repaints_says_so():
    points, taus = points_in_box(5), torch.tensor([0.0, 0.5])
    assert torch.equal(scene_of(make(STATIC)).tracks(points, taus), points.expand(2, 5, 3))
    assert torch.equal(make(STATIC).tracks(points, taus)[0], points.expand(2, 5, 3))
    with pytest.raises(ValueError, match=r"SpaceTimeEncoding repaints .*HashGridDeformation can"):
        scene_of(make({"otype": "HashGridSpatialTime"})).tracks(points, taus)

    class Other(ImplicitVolume):
        tracks = None

    other = scene_of(Other({"pos_encoding_config": {**GRID, **MOTION}}))
    with pytest.raises(ValueError, match=r"Other can't follow points .*HashGridDeformation can"):
        other.tracks(points, taus)


def test_a_scene_in_a_loop_looks_at_its_end_as_at_its_start():
    volume = bend(make(MOTION, density_bias="blob_magic3d"), turn=0.1).requires_grad_(False)
    scene, points = scene_of(volume), points_in_box(200)
    ends = torch.tensor([0.0, 1.0])
    scene.system.renderer.estimator.fill()
    first, last = scene.look(Cameras.of([20.0, 20.0]), ends, 16, 16)["comp_rgb"]
    assert (first - last).abs().max() > 0.1
    scene.loop()
    first, last = scene.look(Cameras.of([20.0, 20.0]), ends, 16, 16)["comp_rgb"]
    torch.testing.assert_close(first, last, atol=1e-4, rtol=0)
    torch.testing.assert_close(scene.tracks(points, ends)[1], points, atol=1e-5, rtol=0)


def test_a_still_scene_is_a_loop_and_one_that_repaints_can_be_none():
    scene_of(make(STATIC)).loop()
    with pytest.raises(ValueError, match=r"painted anew at each moment: .*--field deformation"):
        scene_of(make({"otype": "HashGridSpatialTime"})).loop()


def test_places_that_are_off_are_counted(monkeypatch):
    said = []
    monkeypatch.setattr(trained.threestudio, "warn", said.append)
    points, taus = points_in_box(500), torch.tensor([1.0])
    scene_of(bend(make(MOTION))).tracks(points, taus)
    assert scene_of(bend(make(MOTION))).tracks(points, taus[:0]).shape == (0, 500, 3)
    assert said == []
    volume = bend(make(MOTION), size=0.6)  # space is folded
    scene_of(volume).tracks(points, taus)
    off = volume.tracks(points, taus)[1] > 2e-4
    assert f"{int(off.sum())} of 500 places are off" in said[0] and off.any()


@pytest.mark.slow
def test_many_points_are_followed_in_seconds():
    volume = bend(make({**MOTION, "deformation_cells": [4, 8, 16, 32]}), size=0.05)
    start = time.perf_counter()
    _, errors = volume.tracks(points_in_box(50_000), torch.linspace(0, 1, 32))
    assert time.perf_counter() - start < 30  # 5 on one core with nothing else on it
    assert errors.max() < 2e-4
