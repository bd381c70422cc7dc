"""A mesh's texture: what a picture of the textured mesh shows is what the field has."""

import numpy as np
import pytest
import torch
from animate124.data.cameras import Cameras
from animate124.exporter.following import moving_mesh
from animate124.exporter.surface import Mesh
from animate124.exporter.texture import Layout, lay_out, spread, texels_of, textured

from rasterizer import looked_up, picture, psnr
from test_exporter import make_exporter
from test_moving_glb import Rider

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("xatlas")


class Stripes(Rider):
    """Colours that no vertex of a coarse mesh could carry; the same along each radius."""

    def colour(self, points, tau):
        away = torch.nn.functional.normalize(points - self.centre(0.0), dim=-1)
        return 0.5 + 0.4 * torch.sin(12 * away)


@pytest.fixture(scope="module")
def striped():
    """A coarse ball that moves, its field, and its like with a texture."""
    ball = trimesh.creation.icosphere(2)
    normals = np.asarray(ball.vertices, np.float32)
    vertices = normals * Stripes.radius(0.0) + Stripes.centre(0.0).numpy()
    field = make_exporter(Stripes()).field
    plain, _ = moving_mesh(field, Mesh(vertices, np.asarray(ball.faces), normals), [0.0, 0.5, 1.0])
    return plain, field, textured(plain, field, 256)


def test_seams_hold_together_in_every_frame(striped):
    plain, _, mesh = striped
    assert len(mesh.faces) == len(plain.faces) and len(mesh.places[0]) > len(plain.places[0])
    corners = mesh.places[:, mesh.faces]
    # xatlas keeps the order of faces and of their corners
    np.testing.assert_array_equal(corners, plain.places[:, plain.faces])
    np.testing.assert_array_equal(mesh.normals[:, mesh.faces], plain.normals[:, plain.faces])
    assert mesh.texture.shape == (256, 256, 3)
    assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1


def test_the_texture_has_the_fields_colours_everywhere(striped):
    _, _, mesh = striped
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([1, 1, 1], len(mesh.faces))[..., None]
    points = (mesh.places[0][mesh.faces] * weights).sum(1)
    uv = (mesh.uv[mesh.faces] * weights).sum(1)
    truth = Stripes().colour(torch.from_numpy(points).float(), 0.0).numpy()
    errors = np.abs(looked_up(mesh.texture / 255.0, uv) - truth)
    assert errors.mean() < 0.02 and np.quantile(errors, 0.99) < 0.1


def test_pictures_are_nearer_to_the_truth_than_with_colours_at_the_vertices(striped):
    plain, _, mesh = striped
    view = Cameras.of([10.0, -40.0], [0.0, 130.0]).batch(64, 64)
    for i, (tau, mvp) in enumerate(zip((0.0, 0.5), view["mvp_mtx"].double().numpy(), strict=True)):
        origin, direction = (view[key][i].reshape(-1, 3).double() for key in ("rays_o", "rays_d"))
        centre = Rider().turned(Rider.centre(0.0), tau, back=False).double()
        along = ((centre - origin) * direction).sum(-1, keepdim=True)
        nearest = (origin + along * direction - centre).norm(dim=-1, keepdim=True)
        deep = (Rider.radius(0.0) ** 2 - nearest**2).clamp(min=0).sqrt()
        hit = (origin + (along - deep) * direction).float()
        colour = Stripes().colour(Rider().turned(hit, tau, back=True), 0.0)
        truth = torch.where(deep > 0, colour, torch.ones(3)).view(64, 64, 3).numpy()
        fine, coarse = (picture(m, i, mvp, 64, 64, np.ones(3)) for m in (mesh, plain))
        assert psnr(fine, truth) > max(24.0, psnr(coarse, truth) + 3)


def test_a_texel_is_its_triangles():
    """Two triangles that halve a picture: where each centre lies, by arithmetic."""
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    layout = Layout(np.arange(4), np.array([[0, 1, 2], [0, 2, 3]]), uv, 8)
    texels = texels_of(layout)
    assert texels.place.tolist() == list(range(64))
    row, column = np.divmod(texels.place, 8)
    x, y = (column + 0.5) / 8, 1 - (row + 0.5) / 8
    np.testing.assert_array_equal(texels.face[x != y], (y > x)[x != y])
    found = (uv[layout.faces[texels.face]] * texels.weights[..., None]).sum(1)
    np.testing.assert_allclose(found, np.stack([x, y], -1), atol=1e-6)


def test_islands_do_not_overlap_and_lie_apart(striped):
    plain, _, _ = striped
    layout = lay_out(plain, 256)
    texels = texels_of(layout)
    assert len(np.unique(texels.face)) == len(plain.faces)
    corners = layout.uv[layout.faces].astype(float) * layout.size
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    assert len(texels.place) == pytest.approx(area, rel=0.02)  # fewer, if some were shared


def test_nobodys_texels_take_the_nearest_colour():
    picture = np.zeros((3, 5, 3), np.float32)
    there = np.zeros((3, 5), bool)
    picture[0, 0], picture[2, 4] = 1.0, 0.5
    there[0, 0] = there[2, 4] = True
    found = spread(picture, there)[..., 0]
    assert found[0, 1] == found[1, 0] == 1.0 and found[2, 3] == found[1, 4] == 0.5
    assert spread(picture, np.zeros((3, 5), bool)).max() == 1.0
