"""What is saved can be read again, and shows what was given."""

import json

import numpy as np
import pytest
import torch
from threestudio.models.mesh import Mesh
from threestudio.utils.saving import SaverMixin

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def saver(tmp_path):
    saver = SaverMixin()
    saver.set_save_dir(str(tmp_path / "save"))
    return saver


def read(path):
    return cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_nothing_is_saved_without_a_folder():
    with pytest.raises(ValueError, match="set_save_dir"):
        SaverMixin().get_save_path("a.png")


def test_rgb_images_round_trip(saver):
    image = torch.rand(5, 7, 3, requires_grad=True)
    expected = (image.detach() * 255).round().byte().numpy()
    path = saver.save_rgb_image("deep/down/a.png", image)
    assert path == saver.get_save_path("deep/down/a.png")
    np.testing.assert_array_equal(read(path), expected)
    chw = saver.save_rgb_image("b.png", image.permute(2, 0, 1) * 4 - 2, "CHW", (-2, 2))
    np.testing.assert_array_equal(read(chw), expected)
    np.testing.assert_array_equal(read(saver.save_image("c.png", expected)), expected)
    with pytest.raises(TypeError, match="uint8"):
        saver.save_image("c.png", image)
    with pytest.raises(ValueError, match="data_format"):
        saver.save_rgb_image("c.png", image, "WHC")


def test_more_channels_become_more_pictures(saver):
    features = torch.rand(4, 5, 7)
    picture = read(saver.save_rgb_image("a.png", features))
    assert picture.shape == (4, 15, 3)
    np.testing.assert_array_equal(picture[:, 5:10], (features[..., 3:6] * 255).round().byte())
    assert (picture[:, 10:, 1:] == 0).all()


@pytest.mark.parametrize("cmap", [None, "jet", "magma", "spectral"])
def test_grayscale_maps_keep_the_order(saver, cmap):
    ramp = torch.linspace(0, 5, 64).expand(2, 64)
    colours = read(saver.save_grayscale_image("a.png", ramp, cmap=cmap))[0].astype(int)
    assert (np.abs(np.diff(colours, axis=0)).sum(1) > 0).mean() > 0.9  # it moves on
    if cmap is None:
        np.testing.assert_array_equal(colours[:, 0], np.rint(np.linspace(0, 255, 64)))
    constant = read(saver.save_grayscale_image("b.png", torch.ones(2, 3), cmap=cmap))
    assert (constant == constant[0, 0]).all()


def test_a_grid_puts_pictures_beside_each_other(saver):
    red = torch.tensor([1.0, 0.0, 0.0]).expand(4, 4, 3)
    row = [
        {"type": "rgb", "img": red, "kwargs": {"data_format": "HWC"}},
        {
            "type": "grayscale",
            "img": torch.ones(8, 8),
            "kwargs": {"cmap": None, "data_range": (0, 1)},
        },
        {"type": "uv", "img": torch.ones(8, 8, 2), "kwargs": {"cmap": "color"}},
    ]
    picture = read(saver.save_image_grid("grid.png", [row, row], texts=None))
    assert picture.shape == (16, 24, 3)
    for x, colour in ((4, [255, 0, 0]), (12, [255, 255, 255]), (20, [255, 255, 0])):
        assert picture[12, x].tolist() == colour
    assert read(saver.save_image_grid("small.png", row, align="min")).shape == (4, 12, 3)
    assert read(saver.save_image_grid("fixed.png", row, align=(6, 5))).shape == (6, 15, 3)
    written = read(saver.save_image_grid("text.png", [row, row], texts=["t = 500"]))
    assert (written != picture).any()
    with pytest.raises(ValueError, match="align"):
        saver.save_image_grid("grid.png", row, align="middle")
    with pytest.raises(ValueError, match="rgb, uv or grayscale"):
        saver.save_image_grid("grid.png", [{"type": "hdr", "img": red}])


def test_texture_coordinates_are_red_and_green_or_a_checkerboard(saver):
    v, u = torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 256), indexing="ij")
    uv = torch.stack([u, v], dim=-1)
    colours = read(saver.save_uv_image("a.png", uv, cmap="color"))
    np.testing.assert_array_equal(colours[0, :, 0], np.arange(256))
    np.testing.assert_array_equal(colours[:, 0, 1], np.arange(256))
    assert (colours[..., 2] == 0).all()
    board = read(saver.save_uv_image("b.png", uv.permute(2, 0, 1), "CHW"))
    assert {tuple(c) for c in board.reshape(-1, 3)} == {(255, 0, 255), (255, 255, 255)}
    magenta = (board[..., 1] == 0).mean()
    assert 0.45 < magenta < 0.55 and (board[0, 0] != board[0, 4]).any()
    with pytest.raises(ValueError, match="checkerboard"):
        saver.save_uv_image("c.png", uv, cmap="jet")


def test_a_picture_that_cant_be_read_is_named(saver, tmp_path):
    frames = tmp_path / "save" / "frames"
    frames.mkdir(parents=True)
    (frames / "1.png").write_bytes(b"none")
    with pytest.raises(OSError, match=r"1\.png"):
        saver.save_img_sequence("video", "frames", r"(\d+)\.png")


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_videos_hold_their_frames_in_order(saver, kind):
    imageio = pytest.importorskip("imageio")
    for i in (10, 2, 1):  # as text, 10 would come before 2
        saver.save_rgb_image(f"frames/{i}.png", torch.full((17, 32, 3), i / 10))
    saver.save_json("frames/1.json", {})
    path = saver.save_img_sequence("video", "frames", r"(\d+)\.png", save_format=kind, fps=5)
    frames = np.stack(imageio.mimread(path))
    assert path.endswith(f"video.{kind}") and len(frames) == 3
    assert frames.shape[1:3] == ((18, 32) if kind == "mp4" else (17, 32))
    assert np.diff(frames.reshape(3, -1).astype(float).mean(1)).min() > 10
    with pytest.raises(FileNotFoundError, match="No picture"):
        saver.save_img_sequence("video", "nowhere", r"(\d+)\.png")


def test_meshes_round_trip(saver):
    trimesh = pytest.importorskip("trimesh")
    v = torch.rand(4, 3)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    for name in ("a.ply", "a.glb"):
        loaded = trimesh.load(saver.save_mesh(name, v, faces), force="mesh", process=False)
        np.testing.assert_allclose(loaded.vertices, v, atol=1e-6)
        np.testing.assert_array_equal(loaded.faces, faces)
    mesh = Mesh(v, faces)
    mesh.set_vertex_color(torch.rand(4, 3))
    (path,) = saver.save_obj("b", mesh, save_normal=True, save_vertex_color=True)
    loaded = trimesh.load(path, process=False, maintain_order=True)
    np.testing.assert_allclose(loaded.vertices, v, atol=1e-6)
    np.testing.assert_allclose(loaded.visual.vertex_colors[:, :3] / 255, mesh.v_rgb, atol=3e-3)
    with open(path) as file:
        normals = [line.split()[1:] for line in file if line.startswith("vn ")]
    np.testing.assert_allclose(np.array(normals, dtype=float), mesh.v_nrm, atol=1e-5)


def test_an_obj_with_material_names_its_textures(saver, tmp_path):
    mesh = Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]]))
    mesh._v_tex, mesh._t_tex_idx = torch.rand(3, 2), torch.tensor([[2, 1, 0]])
    texture, rough = torch.rand(8, 8, 3), torch.full((8, 8, 1), 0.5)
    paths = saver.save_obj(
        "deep/m.obj",
        mesh,
        save_mat=True,
        save_uv=True,
        map_Kd=texture,
        map_Pr=rough,
        map_format="png",
    )
    names = ["m.mtl", "texture_kd.png", "texture_roughness.png", "m.obj"]
    assert paths == [str(tmp_path / "save" / "deep" / name) for name in names]
    np.testing.assert_array_equal(read(paths[1]), (texture * 255).round().byte())
    assert (read(paths[2]) == 128).all()
    material = (tmp_path / "save" / "deep" / "m.mtl").read_text()
    assert "map_Kd texture_kd.png" in material and "map_Pr texture_roughness.png" in material
    obj = (tmp_path / "save" / "deep" / "m.obj").read_text()
    assert "mtllib m.mtl" in obj and "f 1/3 2/2 3/1" in obj


def test_data_round_trips(saver, tmp_path):
    x = torch.rand(3)
    np.testing.assert_array_equal(np.load(saver.save_data("a", x)), x)
    np.testing.assert_array_equal(np.load(saver.save_data("b", {"x": x, "y": [x]}))["x"], x)
    with open(saver.save_json("c.json", {"x": [1, 2]})) as file:
        assert json.load(file) == {"x": [1, 2]}
    state = torch.load(saver.save_state_dict("d.pt", {"x": x}), weights_only=True)
    torch.testing.assert_close(state["x"], x)
    copy = saver.save_file("e/copy.json", saver.get_save_path("c.json"))
    assert json.loads((tmp_path / "save" / "e" / "copy.json").read_text()) and copy.endswith("json")
    with pytest.raises(TypeError, match="not str"):
        saver.save_data("f", "text")
