"""A scene that is followed as one GLB with morph targets: read back, and held against a motion in
closed form."""

import numpy as np
import pygltflib
import pytest
import threestudio
import torch
import trimesh
from animate124.exporter.field import slanted
from animate124.exporter.following import mended
from animate124.exporter.gltf import linear_light
from animate124.exporter.morph_glb import STILL, write_moving_glb
from animate124.exporter.moving_mesh import MovingMesh
from animate124.exporter.surface import Mesh, simplify, vertex_normals

from test_exporter import STEP, Ball, export, make_exporter

FPS = 16.0


class Rider(Ball):
    """The ball of tau = 0 that rides in a circle and turns; its colours go with it."""

    def turned(self, points, tau, back):
        angle = torch.as_tensor(1.0 * tau) * (-1 if back else 1)
        c, s = torch.cos(angle), torch.sin(angle)
        x, y, z = points.unbind(-1)
        return torch.stack([c * x - s * y, s * x + c * y, z], -1)

    def canonical(self, points, times):
        return points if times is None else self.turned(points, times.view(()), back=True)

    def forward_density(self, points, times=None):
        return super().forward_density(self.canonical(points, times), torch.zeros(1, 1))

    def forward(self, points, output_normal=False, times=None):
        points = self.canonical(points, times)
        return super().forward(points, times=torch.zeros(1, 1))

    def tracks(self, points, taus):
        places = torch.stack([self.turned(points, tau, back=False) for tau in taus])
        return places, torch.zeros(places.shape[:2])


def values(gltf, index):
    """An accessor as the specification says it, sparse ones and strides among them, in floats."""
    accessor = gltf.accessors[index]
    kind = {5120: "i1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
    columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor.type]

    def read(view, component, count, columns):
        view, dtype = gltf.bufferViews[view], np.dtype(kind[component])
        stride = view.byteStride or columns * dtype.itemsize
        assert view.byteOffset % 4 == 0 and count * stride <= view.byteLength
        raw = gltf.binary_blob()[view.byteOffset : view.byteOffset + count * stride]
        rows = np.frombuffer(raw, "u1").reshape(count, stride)[:, : columns * dtype.itemsize]
        return np.ascontiguousarray(rows).view(dtype).reshape(count, columns)

    if accessor.bufferView is None:
        found = np.zeros((accessor.count, columns), "<f4")
    else:
        found = read(accessor.bufferView, accessor.componentType, accessor.count, columns)
    if accessor.sparse is not None:
        n, where, what = accessor.sparse.count, accessor.sparse.indices, accessor.sparse.values
        at = read(where.bufferView, where.componentType, n, 1)[:, 0]
        assert (np.diff(at.astype(int)) > 0).all()
        found = found.copy()
        found[at] = read(what.bufferView, accessor.componentType, n, columns)
    if accessor.min:
        np.testing.assert_array_equal(found.min(0), np.array(accessor.min, found.dtype))
        np.testing.assert_array_equal(found.max(0), np.array(accessor.max, found.dtype))
    most = {5120: 127, 5123: 65535}.get(accessor.componentType, 1) if accessor.normalized else 1
    return found / most


def frames_of(path):
    """(places [F V 3], normals [F V 3]) of a moving GLB."""
    gltf = pygltflib.GLTF2().load(str(path))
    (primitive,) = gltf.meshes[0].primitives
    rest = values(gltf, primitive.attributes.POSITION), values(gltf, primitive.attributes.NORMAL)
    targets = primitive.targets or []
    steps = [(values(gltf, t["POSITION"]), values(gltf, t["NORMAL"])) for t in targets]
    pairs = [rest, *((rest[0] + step, rest[1] + turn) for step, turn in steps)]
    return tuple(np.stack(each) for each in zip(*pairs, strict=True))


@pytest.fixture(scope="module")
def ridden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ridden")
    summary = export(folder, Rider(), num_frames=5, formats=["animated-glb", "ply"])
    return folder / "it7-export", summary


def test_every_target_is_the_surface_of_its_time_with_the_same_vertices(ridden):
    folder, summary = ridden
    places, normals = frames_of(folder / "animation.glb")
    assert len(places) == 5 and [row["tau"] for row in summary["frames"]] == [0, 0.25, 0.5, 0.75, 1]
    for tau, place, normal in zip(np.linspace(0, 1, 5), places, normals, strict=True):
        centre = Rider().turned(Ball.centre(0.0), float(tau), back=False).numpy()
        radii = np.linalg.norm(place - centre, axis=-1)
        np.testing.assert_allclose(radii, Ball.radius(0.0), atol=STEP / 5)
        home = Rider().turned(torch.from_numpy(place), float(tau), back=True).numpy()
        np.testing.assert_allclose(home, places[0], atol=2e-6)
        outwards = (normal * (place - centre)).sum(-1) / radii
        assert outwards.min() > 0.97 and outwards.max() < 1.02  # half a step of a byte on each axis


def test_it_has_names_times_and_colours(ridden):
    folder, _ = ridden
    gltf = pygltflib.GLTF2().load(str(folder / "animation.glb"))
    assert [node.name for node in gltf.nodes] == ["scene", "scene_mesh"]
    assert gltf.meshes[0].extras["targetNames"] == [f"frame_{i:04d}" for i in range(1, 5)]
    (animation,) = gltf.animations
    assert animation.name == "motion" and animation.samplers[0].interpolation == "LINEAR"
    times = values(gltf, animation.samplers[0].input)[:, 0]
    np.testing.assert_allclose(times, np.arange(5) / FPS)
    (primitive,) = gltf.meshes[0].primitives
    colours = values(gltf, primitive.attributes.COLOR_0)[:, :3]
    # a ray goes a twentieth of the radius in, where the height is another by as much at most
    truth = Ball.colour(torch.from_numpy(values(gltf, primitive.attributes.POSITION)).float(), 0.0)
    np.testing.assert_allclose(colours, linear_light(truth.numpy()), atol=0.04)


def weights_at(gltf, seconds):
    """Linear interpolation as the specification says it."""
    sampler = gltf.animations[0].samplers[0]
    times = values(gltf, sampler.input)[:, 0]
    table = values(gltf, sampler.output).reshape(len(times), -1)
    return np.array([np.interp(seconds, times, column) for column in table.T])


@pytest.mark.parametrize("seconds", [0.0, 0.02, 1 / 16, 0.1, 0.17, 4 / 16, 9.0])
def test_at_most_two_targets_are_active_and_they_share_the_moment(ridden, seconds):
    folder, _ = ridden
    weights = weights_at(pygltflib.GLTF2().load(str(folder / "animation.glb")), seconds)
    at = min(seconds * FPS, 4)
    expected = (1 - np.abs(at - np.arange(5))).clip(0)[1:]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert (weights > 0).sum() <= 2


def test_meshes_a_frame_have_the_same_triangles(ridden):
    folder, summary = ridden
    places, _ = frames_of(folder / "animation.glb")
    read = [trimesh.load(folder / row["ply"], process=False) for row in summary["frames"]]
    for mesh, place in zip(read, places, strict=True):
        np.testing.assert_array_equal(mesh.faces, read[0].faces)
        np.testing.assert_allclose(mesh.vertices, place, atol=1e-6)


def test_a_file_is_no_larger_than_its_numbers(ridden):
    """1.5 times the positions a frame, the colours and the indices."""
    folder, _ = ridden
    places, _ = frames_of(folder / "animation.glb")
    faces = len(trimesh.load(folder / "meshes/frame_0000.ply", process=False).faces)
    size = (folder / "animation.glb").stat().st_size
    positions, colours = 12 * places[..., 0].size, 8 * len(places[0])
    assert size <= 1.5 * (positions + colours + 3 * 2 * faces)


def strip(n=9):
    """A flat square of 2 (n - 1)^2 triangles, each inner vertex with six neighbours around it."""
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    vertices = np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(np.float32)
    index = np.arange(n * n).reshape(n, n)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return vertices, faces


def moving_strip(steps):
    """A strip whose vertices go along +z by steps [F V]."""
    vertices, faces = strip()
    places = np.repeat(vertices[None], len(steps), 0)
    places[..., 2] += steps
    colours = np.full((len(vertices), 3), 0.5, np.float32)
    taus = np.linspace(0, 1, len(steps)).astype(np.float32)
    return MovingMesh(taus, places, vertex_normals(places, faces), faces, colours)


def test_what_hardly_moves_is_left_out(tmp_path):
    still = STILL * 8  # the square is 8 wide
    steps = np.zeros((4, 81), np.float32)
    steps[1] = 0.9 * still  # all of it, by less than is seen
    steps[2, :10] = 3.0
    steps[3] = 5.0
    moving = moving_strip(steps)
    write_moving_glb(tmp_path / "a.glb", moving)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    described = [gltf.accessors[t["POSITION"]] for t in gltf.meshes[0].primitives[0].targets]
    assert [a.sparse.count if a.sparse else None for a in described] == [None, 10, None]
    assert described[0].bufferView is None
    places, _ = frames_of(tmp_path / "a.glb")
    np.testing.assert_array_equal(places[2:], moving.places[2:])
    assert np.abs(places - moving.places).max() < still


def test_one_frame_is_a_still_mesh(tmp_path):
    write_moving_glb(tmp_path / "a.glb", moving_strip(np.zeros((1, 81))))
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert not gltf.animations and not gltf.meshes[0].primitives[0].targets
    assert gltf.extensionsUsed == ["KHR_materials_unlit"] and not gltf.extensionsRequired


def test_lit_by_choice(tmp_path):
    for lit in (False, True):
        write_moving_glb(tmp_path / "a.glb", moving_strip(np.zeros((2, 81))), lit=lit)
        gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
        assert ("KHR_materials_unlit" in gltf.extensionsUsed) is not lit
        assert ("KHR_materials_unlit" in gltf.materials[0].extensions) is not lit


def test_lost_vertices_go_with_their_neighbours():
    """An affine motion is its own mean around a vertex of the strip: what is lost inside is found
    again, whatever was said of it."""
    vertices, faces = strip()
    shift = vertices @ np.array([[0.1, 0.2, 0], [0, 0.3, 0.1], [0, 0, 1]], np.float32).T
    truth = np.stack([vertices, vertices + shift])
    lost = np.zeros((2, 81), bool)
    lost[1, [20, 21, 22, 30, 31, 50]] = True
    places = truth.copy()
    places[lost] += 0.5
    found = mended(places, vertices, faces, lost)
    np.testing.assert_array_equal(found[0], vertices)
    np.testing.assert_allclose(found[1], truth[1], atol=2e-3)
    alone = mended(places, vertices, faces, np.array([[False] * 81, [True] * 81]))
    np.testing.assert_allclose(alone[1].mean(0), places[1].mean(0), atol=1e-3)


def test_normals_are_the_triangles():
    ball = trimesh.creation.icosphere(3)
    normals = vertex_normals(np.asarray(ball.vertices)[None], np.asarray(ball.faces))[0]
    np.testing.assert_allclose(normals, ball.vertices, atol=0.02)


def test_fewer_faces_keep_the_shape():
    pytest.importorskip("fast_simplification")
    ball = trimesh.creation.icosphere(4)  # 5120 faces
    vertices = np.asarray(ball.vertices, np.float32)
    few = simplify(Mesh(vertices, np.asarray(ball.faces), vertices), 1000)
    mesh = trimesh.Trimesh(few.vertices, few.faces, process=False)
    assert mesh.is_watertight and 900 <= len(few.faces) <= 1000
    assert mesh.volume == pytest.approx(ball.volume, rel=0.01)
    assert (few.normals * few.vertices).sum(-1).min() > 0.98
    assert simplify(few, 0) is few and simplify(few, 2000) is few


class Skin(Ball):
    """Empty for x > 0, of a density of 15 behind; red grows with depth."""

    def forward(self, points, output_normal=False, times=None):
        x = points[:, :1]
        colour = torch.cat([0.2 - 4 * x.clamp(-0.1, 0), 0 * x + 0.5, 0 * x + 0.5], -1)
        return {"density": 15.0 * (x < 0), "features": colour.logit()}


def test_colours_are_what_slanted_rays_see():
    """Light that ends in matter of density s, of no more than d, has gone 1/s - d / (exp(s d) - 1)
    into it on average."""
    field = make_exporter(Skin()).field
    at = torch.tensor([[0.0, 0.3, 0.1]])
    seen = field.seen(at, torch.tensor([[1.0, 0.0, 0.0]]))[0]
    s, d = 15.0, 0.08
    depth = (1 / s - d / np.expm1(s * d)) * np.cos(np.pi / 4)
    assert seen[0].item() == pytest.approx(0.2 + 4 * depth, abs=0.01)
    assert seen[1].item() == pytest.approx(0.5, abs=1e-4)


def test_rays_come_evenly_from_around_the_normal():
    normals = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    rays = slanted(normals)
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(50, 3))
    torch.testing.assert_close(rays.mean(1), np.cos(np.pi / 4) * normals)


def test_a_scene_that_is_repainted_is_not_followed():
    assert not make_exporter(Ball()).field.can_follow()
    assert make_exporter(Rider()).field.can_follow()
    geometry = threestudio.find("animate124-implicit-volume")(
        {"pos_encoding_config": {"otype": "HashGridSpatialTime", "n_levels": 2}}
    )
    assert not make_exporter(geometry).field.can_follow()
