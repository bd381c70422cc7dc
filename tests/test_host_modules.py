"""Bases of the host: updates, weights, small maths, geometry, background, material, prompts."""

from dataclasses import dataclass

import pytest
import threestudio
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from threestudio.models.geometry.base import BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.mesh import Mesh
from threestudio.models.prompt_processors.base import (
    PromptProcessor,
    hash_prompt,
    shift_azimuth_deg,
)
from threestudio.utils import misc, ops
from threestudio.utils.base import BaseModule, BaseObject, Updateable, update_if_possible


class Leaf(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        size: int = 2

    def configure(self, journal=None, name="leaf"):
        self.journal, self.name = journal, name
        self.weight = torch.nn.Parameter(torch.zeros(self.cfg.size))

    def update_step(self, epoch, global_step, on_load_weights=False):
        if self.journal is not None:
            self.journal.append((self.name, global_step, on_load_weights))

    def update_step_end(self, epoch, global_step):
        self.journal.append((self.name, global_step, "end"))


class Tree(BaseModule):
    def configure(self, journal):
        self.second = Leaf({}, journal, "second")
        self.first = Leaf({}, journal, "first")
        self._hidden = [Leaf({}, journal, "hidden")]
        self.journal = journal
        self.helper = Helper({}, journal)

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.journal.append(("tree", global_step, on_load_weights))

    def update_step_end(self, epoch, global_step):
        self.journal.append(("tree", global_step, "end"))

    @property
    def broken(self):
        raise RuntimeError("updates don't call properties")


class Helper(BaseObject):
    def configure(self, journal):
        self.journal = journal

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.journal.append(("helper", global_step, on_load_weights))


def test_updates_reach_every_attribute_once_before_the_owner():
    journal = []
    tree = Tree({}, journal)
    tree.do_update_step(0, 5)
    assert journal == [(n, 5, False) for n in ("first", "helper", "second", "tree")]
    journal.clear()
    tree.do_update_step_end(0, 5)
    assert journal == [(n, 5, "end") for n in ("first", "second", "tree")]
    update_if_possible(object(), 0, 0)
    assert issubclass(Leaf, Updateable)


def test_a_modules_weights_come_from_a_checkpoint(tmp_path):
    path = tmp_path / "a:b.ckpt"
    torch.save({"state_dict": {"leaf.weight": torch.tensor([1.0, 2.0])}, "global_step": 9}, path)
    journal = []
    leaf = Leaf({"weights": f"{path}:leaf"}, journal)
    assert leaf.weight.tolist() == [1, 2] and journal == [("leaf", 9, True)]
    with pytest.raises(ValueError, match=r"(?s)doesn't fit Leaf.*size mismatch"):
        Leaf({"weights": f"{path}:leaf", "size": 3})
    with pytest.raises(ValueError, match="<checkpoint>:<module>"):
        Leaf({"weights": "last.ckpt"})


def test_the_device_is_the_cpu_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert misc.get_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (misc.get_rank(), misc.get_device()) == (9, torch.device("cuda:1"))


# small maths


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(-1, 9), n=st.integers(0, 7))
def test_chunks_change_nothing(chunk, n):
    x, scale = torch.randn(n, 3), 2.0

    def function(x, scale, other):
        return {"sum": (x * scale).sum(-1), "pair": [x, other * 3], "none": None}

    expected = function(x, scale, x[:, 0])
    result = ops.chunk_batch(function, chunk, x, scale, other=x[:, 0])
    torch.testing.assert_close(result, expected)


def test_rays_of_every_shape_agree():
    torch.manual_seed(0)
    rotations, _ = torch.linalg.qr(torch.randn(2, 3, 3))
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[:, :3, :3], c2w[:, :3, 3] = rotations, torch.randn(2, 3)
    directions = ops.get_ray_directions(4, 5, focal=6.0)
    o, d = ops.get_rays(directions, c2w, keepdim=True)
    assert o.shape == d.shape == (2, 4, 5, 3)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                pixel = torch.tensor([(j + 0.5 - 2.5) / 6, -(i + 0.5 - 2) / 6, -1])
                expected = F.normalize(rotations[b] @ pixel, dim=0)
                torch.testing.assert_close(d[b, i, j], expected)
                torch.testing.assert_close(o[b, i, j], c2w[b, :3, 3])
    for shaped in (directions.expand(2, 4, 5, 3), directions):
        torch.testing.assert_close(ops.get_rays(shaped, c2w)[1], d.reshape(-1, 3))
    torch.testing.assert_close(ops.get_rays(directions, c2w[0], keepdim=True), (o[0], d[0]))
    flat = directions.reshape(-1, 3)
    torch.testing.assert_close(ops.get_rays(flat, c2w[0])[1], d[0].reshape(-1, 3))
    torch.testing.assert_close(ops.get_rays(flat, c2w[:1])[0], o[0].reshape(-1, 3))


def test_a_projected_ray_lands_on_its_pixel():
    fovy = torch.tensor([0.7])
    c2w = torch.eye(4)[None]
    c2w[:, 2, 3] = 2.5
    mvp = ops.get_mvp_matrix(c2w, ops.get_projection_matrix(fovy, 2.0, 0.1, 100.0))
    focal = (4 / 2 / torch.tan(fovy / 2)).item()
    o, d = ops.get_rays(ops.get_ray_directions(4, 8, focal), c2w, keepdim=True)
    points = F.pad(o + 3 * d, (0, 1), value=1.0)
    clip = points @ mvp[0].T
    x, y = clip[0, ..., 0] / clip[0, ..., 3], clip[0, ..., 1] / clip[0, ..., 3]
    torch.testing.assert_close(x[0], (torch.arange(8) + 0.5) / 4 - 1)
    torch.testing.assert_close(y[:, 0], (torch.arange(4) + 0.5) / 2 - 1)  # down


@pytest.mark.parametrize("name", [None, *ops.ACTIVATIONS, "ReLU", "softplus"])
def test_activations_have_the_gradient_of_their_formula(name):
    x = torch.tensor([-2.0, -0.1, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    activation = ops.get_activation(name)
    if "trunc" in str(name):  # float32 inside
        (grad,) = torch.autograd.grad(activation(x).sum(), x)
        torch.testing.assert_close(grad, activation(x).detach().double())
        return
    assert torch.autograd.gradcheck(activation, x)


def test_truncated_exp_keeps_its_gradient_finite():
    x = torch.tensor([30.0], requires_grad=True)
    ops.trunc_exp(x).backward()
    assert x.grad.item() == pytest.approx(torch.tensor(15.0).exp().item())


def test_an_unknown_activation_says_the_close_ones():
    with pytest.raises(ValueError, match="sigmoid"):
        ops.get_activation("sigmoidd")


def test_scales_and_perpendicular_parts():
    x = torch.rand(5, 3)
    box = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    torch.testing.assert_close(ops.scale_tensor(ops.scale_tensor(x, None, box), box, (0, 1)), x)
    x, y = torch.randn(2, 2, 4, 3, 3)
    assert (ops.perpendicular_component(x, y) * y).sum((1, 2, 3)).abs().max() < 1e-4
    n = F.normalize(torch.randn(4, 3), dim=-1)
    torch.testing.assert_close(ops.reflect(ops.reflect(x[0, :, :, 0], n), n), x[0, :, :, 0])


def test_cross_entropy_equals_torchs():
    p, q = torch.rand(9) * 0.9 + 0.05, torch.rand(9)
    torch.testing.assert_close(ops.binary_cross_entropy(p, q), F.binary_cross_entropy(p, q))


def test_no_rays_become_one_of_no_length():
    empty = torch.zeros(0)
    indices, start, end = ops.validate_empty_rays(empty.long(), empty, empty)
    assert (indices.tolist(), start.tolist(), end.tolist()) == ([0], [0.0], [0.0])
    assert indices.dtype == torch.long and start.dtype == torch.float32


# geometry


class Ball(BaseImplicitGeometry):
    """Density 1 at the centre, falling linearly to 0 at distance 0.8."""

    centre = torch.tensor([0.1, -0.2, 0.05])

    def forward_field(self, points):
        return (1 - (points - self.centre).norm(dim=-1, keepdim=True) / 0.8).clamp(min=0), None

    def forward_level(self, field, threshold):
        return threshold - field


@pytest.mark.parametrize("coarse_to_fine", [False, True])
def test_isosurface_of_a_ball_is_a_sphere(coarse_to_fine):
    pytest.importorskip("skimage")
    ball = Ball(
        {
            "isosurface_threshold": 0.5,
            "isosurface_resolution": 32,
            "isosurface_chunk": 10000,
            "isosurface_coarse_to_fine": coarse_to_fine,
        }
    )
    mesh = ball.isosurface()
    offset = mesh.v_pos - ball.centre
    assert (offset.norm(dim=-1) - 0.4).abs().max() < (0.003 if coarse_to_fine else 0.01)
    assert (mesh.v_nrm * F.normalize(offset, dim=-1)).sum(-1).min() > 0.95  # outwards
    euler = mesh.v_pos.shape[0] - mesh.edges.shape[0] + mesh.t_pos_idx.shape[0]
    assert euler == 2


def test_isosurface_without_a_surface_says_so():
    pytest.importorskip("skimage")
    with pytest.raises(ValueError, match="There is no surface"):
        Ball({"isosurface_threshold": 5.0, "isosurface_resolution": 8}).isosurface()
    with pytest.raises(ValueError, match="auto, or a finite number"):
        Ball({"isosurface_threshold": "much", "isosurface_resolution": 8}).isosurface()


def test_small_pieces_are_removed_with_their_colours():
    pytest.importorskip("scipy")
    v = torch.rand(7, 3)
    faces = torch.tensor([[4, 5, 6], [0, 1, 2], [1, 2, 3], [0, 2, 3]])
    mesh = Mesh(v, faces, note="kept")
    mesh.set_vertex_color(v)
    clean = mesh.remove_outlier(0.7)
    torch.testing.assert_close(clean.v_pos[clean.t_pos_idx], v[faces[1:]])
    torch.testing.assert_close(clean.v_rgb, clean.v_pos)
    assert clean.extras == {"note": "kept"}
    with pytest.raises(ValueError, match="colours for"):
        mesh.set_vertex_color(v[:3])


@settings(max_examples=50, deadline=None)
@given(x=st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_contracted_space_fits_in_the_unit_cube(x):
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    x = torch.tensor([x])
    inside = contract_to_unisphere(x, box, unbounded=True)
    assert ((inside >= 0) & (inside <= 1)).all()
    if x.norm() < 1:
        torch.testing.assert_close(inside, contract_to_unisphere(x, box) / 2 + 0.25)


# stock modules


def test_a_solid_background_is_its_colour():
    make = threestudio.find("solid-color-background")
    dirs = torch.zeros(2, 4, 5, 3)
    color = make({"color": [0.1, 0.2, 0.3]})(dirs)
    torch.testing.assert_close(color, torch.tensor([0.1, 0.2, 0.3]).expand(2, 4, 5, 3))
    assert set(make({}).state_dict()) == {"env_color"}
    assert [n for n, _ in make({"learned": True}).named_parameters()] == ["env_color"]
    with pytest.raises(ValueError, match="color has 2 channels"):
        make({"color": [1.0, 1.0]})


def test_random_backgrounds_are_for_training_and_follow_torchs_seed():
    background = threestudio.find("solid-color-background")(
        {"random_aug": True, "random_aug_prob": 1.0, "learned": True}
    )
    dirs = torch.zeros(2, 4, 5, 3)
    torch.manual_seed(1)
    first = background(dirs)
    torch.manual_seed(1)
    torch.testing.assert_close(background(dirs), first)
    assert (first[0] != first[1]).any() and (first == first[:, :1, :1]).all()
    first.sum().backward()
    assert background.env_color.grad.abs().sum() == 0
    assert (background.eval()(dirs) == 1).all()


def test_no_material_activates_the_features():
    material = threestudio.find("no-material")({"requires_normal": True})
    features = torch.randn(6, 3)
    torch.testing.assert_close(material(features=features), features.sigmoid())
    torch.testing.assert_close(material.export(features)["albedo"], features.sigmoid())
    assert material.requires_normal and not threestudio.find("no-material")({}).requires_normal
    with pytest.raises(ValueError, match="gives 4 features, the material wants 3"):
        material(torch.randn(6, 4))


# prompts


class WordLengths(PromptProcessor):
    """Embeds a prompt as [length of its text, length of its first word]."""

    @staticmethod
    def spawn_func(model, prompts, cache_dir):
        for prompt in prompts:
            embedding = torch.tensor([[float(len(prompt)), float(len(prompt.partition(" ")[0]))]])
            torch.save(embedding, f"{cache_dir}/{hash_prompt(model, prompt)}.pt")


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # collecting garbage takes a second in a long test session
    monkeypatch.setattr("threestudio.models.prompt_processors.base.cleanup", lambda: None)

    def make(**config):
        return WordLengths({"prompt": "panda", "negative_prompt": "ugly", **config})()

    return make


def test_directions_follow_the_camera(prompts):
    output = prompts()
    azimuth = torch.tensor([0.0, 44.0, 46.0, -90.0, 170.0, -170.0, 350.0, 0.0])
    elevation = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 70.0])
    names = ["front", "front", "side", "side", "back", "back", "front", "overhead"]
    embeddings = output.get_text_embeddings(elevation, azimuth, torch.ones(8))
    assert embeddings[:8, 0, 0].tolist() == [len(f"panda, {name} view") for name in names]
    assert (embeddings[8:, 0, 0] == len("ugly")).all()  # conditional first
    plain = output.get_text_embeddings(elevation, azimuth, torch.ones(8), False)
    assert plain[:, 0, 0].tolist() == [5] * 8 + [4] * 8


def test_prompts_may_be_worded_by_hand(prompts):
    output = prompts(prompt_back="the back", view_dependent_prompt_front=True)
    assert output.prompts_vd == [
        "side view of panda",
        "front view of panda",
        "the back",
        "overhead view of panda",
    ]


def test_perp_neg_blends_neighbouring_views(prompts):
    output = prompts(use_perp_neg=True)
    azimuth = torch.tensor([0.0, 45.0, 90.0, 180.0, 0.0])
    elevation = torch.tensor([0.0, 0, 0, 0, 80.0])
    embeddings, weights = output.get_text_embeddings_perp_neg(elevation, azimuth, azimuth)
    view = dict(zip(output.direction2idx, output.text_embeddings_vd, strict=True))
    assert embeddings.shape[0] == 20 and weights.shape == (5, 2)
    torch.testing.assert_close(embeddings[0], view["front"])
    torch.testing.assert_close(embeddings[1], (view["front"] + view["side"]) / 2)
    torch.testing.assert_close(embeddings[2], view["side"])
    torch.testing.assert_close(embeddings[3], view["back"])
    torch.testing.assert_close(embeddings[4], view["overhead"])
    assert weights[4].tolist() == [0, 0]
    assert weights[0, 0].item() == pytest.approx(0, abs=1e-2)  # the view itself is not avoided


def test_a_changed_prompt_is_encoded_a_cached_one_is_not(prompts, monkeypatch):
    prompts()

    def refuse(*args):
        raise AssertionError("should have come from the cache")

    monkeypatch.setattr(WordLengths, "spawn_func", staticmethod(refuse))
    prompts()
    with pytest.raises(AssertionError):
        prompts(prompt="fox")
    with pytest.raises(AssertionError):
        prompts(pretrained_model_name_or_path="another")


def test_a_damaged_cached_prompt_is_encoded_again(prompts, tmp_path):
    expected = prompts().text_embeddings
    for path in tmp_path.rglob("*.pt"):
        whole = path.read_bytes()
        place = whole.index(torch.load(path, weights_only=True).numpy().tobytes())
        path.write_bytes(whole[:place] + b"\1" + whole[place + 1 :])
    assert torch.equal(prompts().text_embeddings, expected)


def test_library_prompts_are_looked_up(prompts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompt_library\.json"):
        prompts(prompt="lib:panda_dancing")
    (tmp_path / "load").mkdir()
    library = tmp_path / "load" / "prompt_library.json"
    library.write_text('{"dreamfusion": ["a panda is dancing", "a panda is asleep"]}')
    assert prompts(prompt="lib:panda_dancing").prompt == "a panda is dancing"
    with pytest.raises(ValueError, match="2 prompts"):
        prompts(prompt="lib:panda")


@settings(max_examples=50, deadline=None)
@given(angle=st.floats(-1000, 1000))
def test_shifted_azimuths_are_the_same_angle(angle):
    shifted = shift_azimuth_deg(torch.tensor([angle], dtype=torch.float64))
    assert -180 <= shifted <= 180
    assert abs((shifted.item() - angle + 180) % 360 - 180) < 1e-6
