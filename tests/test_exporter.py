"""4D assets of a ball that is known at every time, read back by other readers of the formats."""

import json
import sys
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import threestudio
import torch
import trimesh
from animate124.exporter.field import survey
from animate124.exporter.flip_book import write_glb
from animate124.exporter.gltf import FACING_Z_UP_Y, linear_light
from animate124.exporter.old_files import drop_old_files
from animate124.exporter.surface import (
    Mesh,
    automatic_threshold,
    drop_small_parts,
    isosurface,
    sample_surface,
    typical_density,
)
from threestudio.utils.config import load_config
from threestudio.utils.saving import SaverMixin

STEP = 2 * 0.5 / 31  # about a lattice step of the exports below


class Ball(torch.nn.Module):
    """Density 60 inside, falling linearly to 0 within a tenth of a unit; moves and shrinks."""

    static = False

    def __init__(self, density=60.0):
        super().__init__()
        self.density = density
        self.register_buffer("bbox", torch.tensor([[-1.0] * 3, [1.0] * 3]))

    @staticmethod
    def centre(tau):
        return torch.tensor([-0.3, 0.1, 0.0]) + torch.as_tensor([0.6, 0.0, 0.2]) * tau

    @staticmethod
    def radius(tau):
        return 0.4 - 0.1 * tau

    @staticmethod
    def colour(points, tau):
        """Red grows with time, green with height, blue stays."""
        red = torch.full_like(points[:, :1], 0.2) + 0.6 * tau
        return torch.cat([red, 0.5 + 0.4 * points[:, 2:], torch.full_like(red, 0.25)], -1)

    def forward_density(self, points, times):
        distance = (points - self.centre(times)).norm(dim=-1, keepdim=True)
        return self.density * (0.5 + (self.radius(times) - distance) / 0.1).clamp(0, 1)

    def forward(self, points, output_normal=False, times=None):
        colour = self.colour(points, times)
        return {"density": self.forward_density(points, times), "features": colour.logit()}


class StillBall(Ball):
    """Written for a static threestudio: knows nothing of time, says nothing about being static."""

    static = property(lambda self: (_ for _ in ()).throw(AttributeError("static")))

    def forward_density(self, points):
        return super().forward_density(points, torch.zeros_like(points[:, :1]))

    def forward(self, points, output_normal=False):
        colour = self.colour(points, torch.zeros_like(points[:, :1]))
        return {"density": self.forward_density(points), "features": colour.logit()}


def make_exporter(geometry, **cfg):
    cfg = {"num_frames": 3, "resolution": 32, "num_points": 2000, "threshold": 30.0} | cfg
    cfg = {"faces": 0, "texture": 0} | cfg
    return threestudio.find("animate124-4d-exporter")(
        cfg,
        geometry=geometry,
        material=threestudio.find("no-material")({}),
        background=threestudio.find("solid-color-background")({}),
    )


def export(folder, geometry, **cfg):
    """What a host does with an exporter's output; returns the parsed frames.json."""
    saver = SaverMixin()
    saver.set_save_dir(str(folder))
    exporter = make_exporter(geometry, **cfg)  # the host keeps it, and with it the files
    for out in exporter():
        getattr(saver, f"save_{out.save_type}")(f"it7-export/{out.save_name}", **out.params)
    return json.loads((folder / "it7-export/frames.json").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    formats = ["animated-glb", "glb", "ply", "obj", "points"]
    return folder / "it7-export", export(folder, Ball(), formats=formats)


def read(path):
    """One mesh in the scene's frame, whatever the file is."""
    mesh = trimesh.load(path, process=False)
    if isinstance(mesh, trimesh.Scene):
        mesh = next(iter(mesh.geometry.values()))
    return mesh


@pytest.mark.parametrize("kind", ["ply", "obj", "glb"])
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_every_frame_is_the_ball_of_its_time(exported, kind, frame):
    folder, summary = exported
    row = summary["frames"][frame]
    tau = row["tau"]
    mesh = read(folder / row[kind])
    assert tau == frame / 2
    centre, radius = Ball.centre(tau).numpy(), Ball.radius(tau)
    offsets = np.asarray(mesh.vertices) - centre
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), radius, atol=STEP / 10)
    np.testing.assert_allclose(np.asarray(mesh.vertices).mean(0), centre, atol=STEP / 2)
    assert mesh.is_watertight
    # also says that the triangles turn the right way round: else it is negative
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    outwards = (np.asarray(mesh.vertex_normals) * offsets).sum(-1) / radius
    assert outwards.min() > 0.98
    assert row["faces"] == len(mesh.faces)


@pytest.mark.parametrize("frame", [0, 2])
def test_vertex_colours_are_the_materials(exported, frame):
    folder, summary = exported
    row = summary["frames"][frame]
    mesh = read(folder / row["ply"])
    truth = Ball.colour(torch.as_tensor(np.asarray(mesh.vertices)).float(), row["tau"]).numpy()
    got = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    np.testing.assert_allclose(got, truth, atol=0.51 / 255)
    obj_rows = [
        [float(x) for x in line.split()[1:]]
        for line in (folder / row["obj"]).read_text().splitlines()
        if line.startswith("v ")
    ]
    np.testing.assert_allclose(np.array(obj_rows)[:, 3:], truth, atol=1e-4)


def accessor_values(gltf, index):
    """An accessor as numpy, checked on the way: alignment, bounds of its view, min and max."""
    accessor = gltf.accessors[index]
    view = gltf.bufferViews[accessor.bufferView]
    kind = {5126: "<f4", 5125: "<u4", 5123: "<u2"}[accessor.componentType]
    columns = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
    size = accessor.count * columns * np.dtype(kind).itemsize
    indices = view.target == 34963
    assert view.byteOffset % 4 == 0
    assert indices or (columns * np.dtype(kind).itemsize) % 4 == 0
    assert size == view.byteLength
    assert view.byteOffset + view.byteLength <= gltf.buffers[0].byteLength
    values = np.frombuffer(gltf.binary_blob(), kind, accessor.count * columns, view.byteOffset)
    values = values.reshape(accessor.count, columns)
    if accessor.min:
        np.testing.assert_array_equal(values.min(0), np.array(accessor.min, kind))
        np.testing.assert_array_equal(values.max(0), np.array(accessor.max, kind))
    return values


def test_animated_glb_is_sound(exported):
    folder, summary = exported
    path = folder / "animation.glb"
    gltf = pygltflib.GLTF2().load(str(path))
    assert len(gltf.meshes) == 3 and gltf.extensionsUsed == ["KHR_materials_unlit"]
    for mesh, row in zip(gltf.meshes, summary["frames"], strict=True):
        primitive = mesh.primitives[0]
        positions = accessor_values(gltf, primitive.attributes.POSITION)
        normals = accessor_values(gltf, primitive.attributes.NORMAL)
        colours = accessor_values(gltf, primitive.attributes.COLOR_0) / 65535
        indices = accessor_values(gltf, primitive.indices)
        assert gltf.accessors[primitive.attributes.POSITION].min  # the format demands it
        assert indices.max() == len(positions) - 1 and len(indices) == 3 * row["faces"]
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
        truth = Ball.colour(torch.from_numpy(positions.copy()), row["tau"]).numpy()
        np.testing.assert_allclose(colours[:, :3], linear_light(truth), atol=1 / 65535)
        assert (colours[:, 3] == 1).all()
    # what other readers make of it: all three frames, turned to y up
    scene = trimesh.load(path)
    assert sorted(scene.graph.nodes_geometry) == ["frame_0000", "frame_0001", "frame_0002"]


def scale_at(gltf, node, time):
    """STEP interpolation as the glTF specification says it."""
    animation = gltf.animations[0]
    sampler = next(
        animation.samplers[c.sampler] for c in animation.channels if c.target.node == node
    )
    assert sampler.interpolation == "STEP"
    times = accessor_values(gltf, sampler.input)[:, 0]
    assert (np.diff(times) > 0).all()
    scales = accessor_values(gltf, sampler.output)
    return scales[max(0, np.searchsorted(times, time, side="right") - 1)]


@pytest.mark.parametrize("time", [0.0, 0.03, 0.0625, 0.1, 0.125, 0.18, 0.1875, 5.0])
def test_exactly_the_frame_of_the_moment_is_shown(exported, time):
    folder, summary = exported
    gltf = pygltflib.GLTF2().load(str(folder / "animation.glb"))
    shown = [scale_at(gltf, node, time).tolist() for node in gltf.nodes[0].children]
    expected = [[0.0] * 3] * 3
    expected[min(2, int(time * summary["fps"]))] = [1.0] * 3
    assert shown == expected
    # a viewer without animations shows the first frame alone
    assert [gltf.nodes[n].scale for n in gltf.nodes[0].children][1:] == [[0.0] * 3] * 2


def test_root_turns_z_up_to_y_up_and_the_reference_camera_to_plus_z():
    turn = trimesh.transformations.quaternion_matrix(np.roll(FACING_Z_UP_Y, 1))[:3, :3]
    np.testing.assert_allclose(turn @ [1, 2, 3], [2, 3, 1], atol=1e-12)


def test_point_clouds_lie_evenly_on_the_ball(exported):
    folder, summary = exported
    for row in summary["frames"]:
        cloud = trimesh.load(folder / row["points"])
        points = np.asarray(cloud.vertices)
        assert points.shape == (2000, 3)
        offsets = points - Ball.centre(row["tau"]).numpy()
        radius = Ball.radius(row["tau"])
        np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), radius, atol=STEP / 4)
        # Archimedes: on a sphere each coordinate is uniform
        np.testing.assert_allclose(offsets.mean(0), 0, atol=5 * radius / np.sqrt(3 * 2000))
        assert np.mean(offsets[:, 2] > radius / 2) == pytest.approx(0.25, abs=0.05)
        truth = Ball.colour(torch.as_tensor(points).float(), row["tau"]).numpy()
        got = np.asarray(cloud.visual.vertex_colors)[:, :3] / 255
        np.testing.assert_allclose(got, truth, atol=2 / 255)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_exports_what_its_config_names(tmp_path, monkeypatch, stage):
    """The toy stages as they are configured, untrained: the initial blob, still and moving."""
    monkeypatch.chdir(tmp_path)  # load_config makes a trial folder
    config = Path(__file__).parents[1] / "configs" / "toy" / f"stage{stage}.yaml"
    overrides = ["system.weights=null", "system.exporter.resolution=32"]
    overrides += ["system.exporter.num_frames=2", "system.exporter.num_points=10"]
    overrides += ["system.exporter.faces=0", "system.exporter.texture=0"]
    cfg = load_config(str(config), cli_args=overrides, n_gpus=1)
    system = threestudio.find(cfg.system_type)(cfg.system)
    system.set_save_dir(str(tmp_path / "save"))
    folder = tmp_path / "save" / "it0-export"
    old = ["meshes/frame_0000.obj", "meshes/frame_0002.ply", "points/frame_0013.ply"]
    mine = [
        "meshes/frame_0002_mine.ply",
        "meshes/notes.txt",
        "points/frame_13.ply",
        "frame_0002.ply",
    ]
    for name in [*old, *mine]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    system.on_predict_start()
    system.on_predict_epoch_end()
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not there & set(old) and there >= set(mine)
    frames = json.loads((folder / "frames.json").read_text())["frames"]
    assert [row["tau"] for row in frames] == ([0.0] if stage == 1 else [0.0, 1.0])
    radii = np.linalg.norm(np.asarray(read(folder / frames[0]["ply"]).vertices), axis=-1)
    assert radii.min() > 0.2 and radii.max() < 0.6 and np.ptp(radii) < 0.01
    assert (folder / "animation.glb").exists()


def test_an_animation_goes_with_its_frames_when_none_is_asked_for(tmp_path):
    folder = tmp_path / "it7-export"
    export(tmp_path, Ball())
    export(tmp_path, Ball(), formats=["points"], num_frames=2)
    gone = {path.relative_to(folder).as_posix() for path in drop_old_files(folder)}
    assert gone == {
        "animation.glb",
        "points/frame_0002.ply",
        *(f"meshes/frame_{n:04d}.ply" for n in range(3)),
    }
    assert drop_old_files(folder) == []


def test_a_geometry_without_time_gives_one_frame(tmp_path):
    summary = export(tmp_path, StillBall(), formats=["animated-glb"])
    assert [row["tau"] for row in summary["frames"]] == [0.0]
    gltf = pygltflib.GLTF2().load(str(tmp_path / "it7-export/animation.glb"))
    assert not gltf.animations and len(gltf.meshes) == 1


def test_resolution_is_spent_on_the_object_and_more_of_it_comes_closer_to_the_truth(tmp_path):
    volumes = []
    for resolution in (12, 48):
        folder = tmp_path / str(resolution)
        summary = export(folder, Ball(), num_frames=1, resolution=resolution, formats=["ply"])
        volumes.append(read(folder / "it7-export" / summary["frames"][0]["ply"]).volume)
    errors = np.abs(np.array(volumes) - 4 / 3 * np.pi * 0.4**3)
    assert errors[1] < errors[0] / 4
    # 12 points over the whole box of 2 would leave cells of 0.18; the lattice shrinks to the ball
    exporter = make_exporter(Ball(), num_frames=1, resolution=48)
    with torch.no_grad():
        _, lattice = survey(exporter.field, [0.0], 30.0, 48, lambda: None)
    assert lattice.step < 1.1 / 47
    assert all(48 >= n > 40 for n in lattice.shape)


def test_automatic_threshold():
    """A tight object: half its density. Haze around it changes little. Opaque ones: their skin."""
    inside = torch.full((1000,), 10.0)
    clear, hazy = inside, torch.cat([inside, torch.full((100_000,), 0.01)])
    for density in (clear, hazy):
        typical = typical_density(density.sum().item(), density.square().sum().item())
        assert automatic_threshold(typical, 1.0) == pytest.approx(5.0, rel=0.1)
    assert automatic_threshold(1e4, 1.0) == pytest.approx(34.66, rel=1e-3)
    assert typical_density(0.0, 0.0) == 0.0


def test_auto_finds_the_ball(tmp_path):
    summary = export(tmp_path, Ball(density=20.0), threshold="auto", formats=["ply"])
    assert summary["threshold"] == pytest.approx(8.5, abs=1.5)
    mesh = read(tmp_path / "it7-export" / summary["frames"][0]["ply"])
    radii = np.linalg.norm(np.asarray(mesh.vertices) - Ball.centre(0).numpy(), axis=-1)
    np.testing.assert_allclose(radii, 0.4, atol=0.02)


def test_surface_is_closed_where_it_leaves_the_box():
    density = np.zeros((8, 8, 8), np.float32)
    density[:, 2:6, 2:6] = 1.0  # a beam from border to border
    surface = isosurface(density, 0.5, np.zeros(3, np.float32), 1.0)
    mesh = trimesh.Trimesh(surface.vertices, surface.faces)
    assert mesh.is_watertight
    assert surface.vertices.min() >= 0 and surface.vertices.max() <= 7
    assert mesh.volume == pytest.approx(7 * 4 * 4, rel=0.1)


def cube(centre, size):
    box = trimesh.creation.box([size] * 3)
    return np.asarray(box.vertices) + centre, np.asarray(box.faces)


def test_small_parts_are_dropped():
    """Two cubes of 12 faces beside a sphere of 320: 3.75 % of its faces each."""
    ball = trimesh.creation.icosphere(2)
    parts = [cube([3.0, 0, 0], 0.2), (ball.vertices, ball.faces), cube([0, 3.0, 0], 0.2)]
    starts = np.cumsum([0] + [len(v) for v, _ in parts[:-1]])
    vertices = np.concatenate([v for v, _ in parts]).astype(np.float32)
    faces = np.concatenate([f + s for (_, f), s in zip(parts, starts, strict=True)])
    mesh = Mesh(vertices, faces, vertices, np.abs(vertices))
    assert len(drop_small_parts(mesh, 0.01).faces) == 344
    assert len(drop_small_parts(mesh, 0.99).faces) == 320  # the largest stays
    assert len(drop_small_parts(mesh, 0.0375).faces) == 344
    kept = drop_small_parts(mesh, 0.05)
    np.testing.assert_array_equal(kept.vertices[kept.faces], ball.vertices[ball.faces].astype("f4"))
    np.testing.assert_array_equal(kept.normals, kept.vertices)
    np.testing.assert_array_equal(kept.colours, np.abs(kept.vertices))


def test_of_a_swarm_of_equals_all_stay():
    """300 cubes, each of which has a third of a percent of the faces."""
    vertices, faces = cube([0.0, 0, 0], 0.2)
    at = np.arange(300)[:, None, None]
    places = (vertices + at).reshape(-1, 3).astype(np.float32)
    mesh = Mesh(places, (faces + len(vertices) * at).reshape(-1, 3), places)
    assert len(drop_small_parts(mesh, 0.01).faces) == 300 * 12


def test_samples_follow_area():
    """Two triangles of areas 1 and 3."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [5, 0, 0], [8, 0, 0], [5, 2, 0]], "f4")
    normals = np.tile(np.array([[0, 0, 1]], "f4"), (6, 1))
    mesh = Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]]), normals)
    points = sample_surface(mesh, 4000, np.random.default_rng(0)).vertices
    assert np.mean(points[:, 0] >= 5) == pytest.approx(0.75, abs=0.03)
    first = points[points[:, 0] < 5]
    np.testing.assert_allclose(first.mean(0), [1 / 3, 2 / 3, 0], atol=0.05)


def test_same_seed_same_files(tmp_path):
    for name in "ab":
        torch.manual_seed(3)
        export(tmp_path / name, Ball(), num_frames=1)
    for file in (tmp_path / "a").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


class FadingBall(Ball):
    def forward_density(self, points, times):
        return super().forward_density(points, times) * (1 - times)


def test_a_frame_without_surface_says_when_and_what_to_try(tmp_path):
    with pytest.raises(ValueError, match=r"No surface at tau = 1: .*\[0, 0\].*threshold is 20"):
        export(tmp_path, FadingBall(), threshold=20)
    with pytest.raises(ValueError, match=r"tau = 0: .*\[0, 60\].*exporter.threshold=30"):
        export(tmp_path, Ball(), threshold=500)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"formats": ["fbx"]}, "'fbx'.*one of animated-glb"),
        ({"formats": []}, "choose from"),
        ({"num_frames": 0}, "num_frames is 0.*between 1"),
        ({"resolution": 1}, "resolution is 1.*between 2"),
        ({"num_points": 0}, "num_points"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"fps": 0.0}, "fps is 0.0.*more than 0"),
        ({"min_part": 1.5}, "min_part is 1.5.*between 0 and 1"),
        ({"threshold": "soon"}, "'soon', but has to be auto, or more than 0"),
        ({"threshold": -1.0}, "has to be auto, or more than 0"),
    ],
)
def test_bad_config_says_what_would_do(cfg, message):
    with pytest.raises(ValueError, match=message):
        make_exporter(Ball(), **cfg)


def test_missing_scikit_image_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(ImportError, match=r"Meshes need scikit-image\. Try: pip install scikit-im"):
        make_exporter(Ball())


def test_without_the_other_libraries_meshes_are_plain(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with caplog.at_level("WARNING", logger="threestudio"):
        export(tmp_path, StillBall(), faces=100, texture=64, formats=["animated-glb"])
    assert "pip install fast-simplification. Until then meshes keep all of theirs" in caplog.text
    assert "pip install xatlas. Until then colours are at the vertices" in caplog.text
    gltf = pygltflib.GLTF2().load(str(tmp_path / "it7-export/animation.glb"))
    assert gltf.meshes[0].primitives[0].attributes.COLOR_0 is not None and not gltf.images


def test_a_geometry_without_density_is_refused():
    with pytest.raises(TypeError, match="Linear has no forward_density"):
        make_exporter(torch.nn.Linear(1, 1))


def test_a_material_without_albedo_is_refused(tmp_path):
    exporter = make_exporter(Ball())
    exporter.sub_modules.material = type("Glass", (), {"export": lambda self, **k: {}})()
    with pytest.raises(TypeError, match="Glass exports no albedo"):
        exporter()


def test_a_glb_beyond_its_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("animate124.exporter.gltf.LARGEST_FILE", 10_000)
    with pytest.raises(ValueError, match=r"less than 4. Lower system.exporter.resolution"):
        export(tmp_path, Ball(), formats=["animated-glb"])


def test_chunks_do_not_change_the_result(tmp_path):
    whole = export(tmp_path / "a", Ball(), num_frames=1, formats=["ply"])
    parts = export(tmp_path / "b", Ball(), num_frames=1, formats=["ply"], chunk_size=1000)
    assert whole == parts
    name = "it7-export/" + whole["frames"][0]["ply"]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_mesh_needs_no_animation(tmp_path):
    ball = trimesh.creation.icosphere(1)
    vertices = np.asarray(ball.vertices, "f4")
    write_glb(tmp_path / "ball.glb", [Mesh(vertices, np.asarray(ball.faces), vertices)])
    assert pygltflib.GLTF2().load(str(tmp_path / "ball.glb")).animations == []
    scene = trimesh.load(tmp_path / "ball.glb", process=False)
    turn, name = scene.graph.get("frame_0000")
    turned = np.asarray(scene.geometry[name].vertices) @ turn[:3, :3].T
    np.testing.assert_allclose(turned, vertices[:, [1, 2, 0]], atol=1e-6)
