import pytest
import threestudio
import torch
import torch.nn.functional as F
from animate124.geometry import mlp
from animate124.geometry.frame_table import frame_table_torch
from animate124.geometry.hash_grid import HASH_GRIDS
from animate124.geometry.implicit_volume import NORMAL_TYPES, ImplicitVolume
from animate124.geometry.mlp import MLP

GRID = {"n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.5}
NAMES = [
    "encoding.encoding.encoding.params",
    "encoding.encoding.encoding_time.params",
    "density_network.layers.0.weight",
    "density_network.layers.2.weight",
    "feature_network.layers.0.weight",
    "feature_network.layers.2.weight",
]


def make(grid: dict | None = None, rough: bool = True, **config) -> ImplicitVolume:
    """A small field; `rough`: with hash grid entries as large as a trained field's."""
    volume = ImplicitVolume({"pos_encoding_config": {**GRID, **(grid or {})}, **config})
    if rough:
        for table in volume.encoding.parameters():
            torch.nn.init.normal_(table)
    return volume


def bias_only(**config) -> ImplicitVolume:
    volume = make(**config)
    torch.nn.init.zeros_(volume.density_network.layers[2].weight)
    return volume


def points_in_box(n: int = 200, radius: float = 0.9) -> torch.Tensor:
    return (torch.rand(n, 3) * 2 - 1) * radius


def test_it_is_registered_and_its_parameters_have_the_checkpoints_names():
    assert threestudio.find("animate124-implicit-volume") is ImplicitVolume
    assert [name for name, _ in make().named_parameters()] == NAMES
    predicted = [name for name, _ in make(normal_type="pred").named_parameters()]
    assert predicted == [*NAMES, "normal_network.layers.0.weight", "normal_network.layers.2.weight"]


def test_default_sizes_are_those_of_the_published_checkpoints():
    volume = ImplicitVolume({})
    sizes = [list(parameter.shape) for _, parameter in volume.named_parameters()]
    assert sizes == [[12_599_920], [15_474_688], [64, 32], [1, 64], [64, 32], [3, 64]]


@pytest.mark.parametrize(
    "config, raw",
    (
        ({"density_bias": "blob_magic3d"}, lambda r: 10 * (1 - r / 0.5)),
        ({"density_bias": "blob_dreamfusion"}, lambda r: 10 * torch.exp(-r * r / (2 * 0.5**2))),
        ({"density_bias": -1.5}, lambda r: torch.full_like(r, -1.5)),
        ({"density_bias": 0}, torch.zeros_like),
        (
            {"density_bias": "blob_magic3d", "density_blob_scale": 4.0, "density_blob_std": 0.25},
            lambda r: 4 * (1 - r / 0.25),
        ),
    ),
)
def test_density_without_a_network_is_the_biass_closed_form(config, raw):
    points = points_in_box()
    expected = F.softplus(raw(points.norm(dim=-1, keepdim=True)))
    torch.testing.assert_close(bias_only(**config).forward_density(points), expected)


@pytest.mark.parametrize("name, function", (("exp", torch.exp), ("relu", torch.relu), (None, None)))
def test_density_activation_is_chosen_by_name(name, function):
    density = bias_only(density_bias=1.25, density_activation=name).forward_density(
        torch.zeros(1, 3)
    )
    expected = torch.tensor([[1.25]])
    torch.testing.assert_close(density, function(expected) if function else expected)


def test_density_and_features_are_networks_of_the_encoding():
    volume, points, times = make(), points_in_box(), torch.rand(200, 1)
    encoding = volume.encoding((points + 1) / 2, times)
    hidden = {
        name: torch.relu(encoding @ getattr(volume, name).layers[0].weight.T)
        for name in ("density_network", "feature_network")
    }
    output = volume(points, times=times)
    raw = hidden["density_network"] @ volume.density_network.layers[2].weight.T
    bias = 10 * (1 - points.norm(dim=-1, keepdim=True) / 0.5)
    torch.testing.assert_close(output["density"], F.softplus(raw + bias))
    features = hidden["feature_network"] @ volume.feature_network.layers[2].weight.T
    torch.testing.assert_close(output["features"], features)
    torch.testing.assert_close(volume.export(points, times)["features"], features)
    torch.testing.assert_close(volume.forward_density(points, times), output["density"])


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
@pytest.mark.parametrize("shape", ((), (5,), (0,), (2, 3, 4)))
def test_leading_dimensions_are_kept(normal_type, shape):
    volume = make(normal_type=normal_type)
    points, times = torch.rand(*shape, 3), torch.rand(*shape, 1)
    output = volume(points, output_normal=True, times=times)
    assert {name: value.shape for name, value in output.items()} == {
        "density": (*shape, 1),
        "features": (*shape, 3),
        "normal": (*shape, 3),
        "shading_normal": (*shape, 3),
    }
    assert set(volume(points, times=times)) == {"density", "features"}
    sum(value.sum() for value in output.values()).backward()
    for name in NAMES:
        assert volume.get_parameter(name).grad is not None
    flat = volume(points.view(-1, 3), output_normal=True, times=times.view(-1, 1))
    torch.testing.assert_close(output["normal"].view(-1, 3), flat["normal"])


def test_no_features_when_none_are_wanted():
    volume, points = make(n_feature_dims=0), points_in_box(5)
    assert set(volume(points)) == {"density"}
    assert set(volume(points, output_normal=True)) == {"density", "normal", "shading_normal"}
    assert volume.export(points) == {}


@pytest.mark.parametrize("bias", ("blob_magic3d", "blob_dreamfusion"))
@pytest.mark.parametrize("normal_type", ("finite_difference", "analytic"))
def test_normals_of_the_blob_are_radial_and_point_outward(bias, normal_type):
    volume = bias_only(density_bias=bias, normal_type=normal_type).double()
    points = points_in_box().double()
    points = points[points.norm(dim=-1) > 0.2]
    normal = volume(points, output_normal=True)["normal"]
    # central differences of |x| err by about (eps / |x|)^2 / 2
    tolerance = 1e-9 if normal_type == "analytic" else 2e-3
    torch.testing.assert_close(normal, F.normalize(points, dim=-1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("eps", (0.01, 0.1))
def test_finite_difference_normals_are_six_density_queries(eps):
    volume = make(finite_difference_normal_eps=eps).double()
    points, times = points_in_box(radius=1.0).double(), torch.rand(200, 1).double()
    slopes = []
    for axis in torch.eye(3).double() * eps:
        ahead = volume.forward_density(points + axis, times)
        behind = volume.forward_density(points - axis, times)
        slopes.append((ahead - behind) / (2 * eps))
    output = volume(points, output_normal=True, times=times)
    torch.testing.assert_close(output["normal"], -F.normalize(torch.cat(slopes, dim=-1), dim=-1))
    plain = volume(points, times=times)
    torch.testing.assert_close(output["density"], plain["density"])
    torch.testing.assert_close(output["features"], plain["features"])


def test_analytic_normals_are_autograds():
    volume = make(normal_type="analytic")
    points, times = points_in_box().requires_grad_(), torch.rand(200, 1)
    (gradient,) = torch.autograd.grad(volume.forward_density(points, times).sum(), points)
    output = volume(points.detach(), output_normal=True, times=times)
    torch.testing.assert_close(output["normal"], -F.normalize(gradient, dim=-1))


def test_a_loss_on_analytic_normals_has_one_gradient_whatever_the_backend():
    """It takes the grid's second derivatives, which the definition has."""
    points, times, results = points_in_box(50), torch.rand(50, 1), []
    for backend in ("auto", "torch"):
        torch.manual_seed(5)
        volume = make({"backend": backend}, normal_type="analytic")
        output = volume(points, output_normal=True, times=times)
        (output["normal"] * torch.arange(150.0).view(50, 3)).sum().backward()
        grads = [volume.get_parameter(name).grad for name in NAMES[:4]]
        results.append([output["normal"].detach(), *grads])
    for value, expected in zip(*results, strict=True):
        assert expected.any() and (value - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("normal_type", ("finite_difference", "analytic"))
def test_density_falls_along_the_normal(normal_type):
    volume = make(normal_type=normal_type, finite_difference_normal_eps=1e-4).double()
    points = points_in_box().double()
    output = volume(points, output_normal=True)
    ahead = volume.forward_density(points + 1e-5 * output["normal"])
    assert (ahead < output["density"]).float().mean() > 0.98  # the rest sit by a lattice line


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
def test_gradient_of_a_loss_on_normals_is_its_directional_derivative(normal_type):
    volume = make(normal_type=normal_type).double()
    points, times = points_in_box(20).double(), torch.rand(20, 1).double()
    target = torch.randn(20, 3).double()

    def loss():
        return (volume(points, output_normal=True, times=times)["normal"] * target).sum()

    loss().backward()
    step = 1e-6
    for name in (NAMES[0], NAMES[1], "density_network.layers.0.weight"):
        parameter = volume.get_parameter(name)
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step * direction
            ahead = loss()
            parameter -= 2 * step * direction
            behind = loss()
            parameter += step * direction
        expected = (ahead - behind) / (2 * step)
        if normal_type == "pred" and name.startswith("density"):
            assert parameter.grad is None
            continue
        torch.testing.assert_close(
            (parameter.grad * direction).sum(), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("normal_type", NORMAL_TYPES)
def test_normals_without_gradient_are_the_same(normal_type):
    volume, points, times = make(normal_type=normal_type), points_in_box(), torch.rand(200, 1)
    expected = volume(points, output_normal=True, times=times)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            output = volume(points.clone(), output_normal=True, times=times.clone())
        for name, value in output.items():
            assert not value.requires_grad
            torch.testing.assert_close(value, expected[name].detach())


def test_gradient_reaches_both_grids_and_both_networks():
    volume = make()
    output = volume(points_in_box(), output_normal=True, times=torch.rand(200, 1))
    (output["features"].sum() + (output["normal"] ** 3).sum()).backward()
    for name in NAMES:
        assert volume.get_parameter(name).grad.abs().sum() > 0, name


def test_static_field_freezes_and_leaves_out_the_time_grid():
    static, dynamic = make({"static": True}), make({"static": False})
    dynamic.load_state_dict(static.state_dict())
    points, times = points_in_box(), torch.rand(200, 1)
    assert static.static and not dynamic.static
    torch.testing.assert_close(static(points, times=times), static(points))
    assert (dynamic(points, times=times)["features"] - static(points)["features"]).abs().max() > 0.1
    static(points, times=times)["density"].sum().backward()
    assert static.encoding.encoding.encoding_time.params.grad is None
    frozen = [name for name, p in static.named_parameters() if not p.requires_grad]
    assert frozen == ["encoding.encoding.encoding_time.params"]


def test_dynamic_field_starts_from_the_static_ones_render_up_to_the_time_grids_start():
    static = make({"static": True}, rough=False)
    torch.nn.init.normal_(static.encoding.encoding.encoding.params)
    dynamic = make({"static": False}, rough=False)
    dynamic.load_state_dict(static.state_dict())
    points = points_in_box()
    torch.testing.assert_close(dynamic(points), static(points), rtol=1e-3, atol=1e-3)


def test_frame_times_change_a_dynamic_field_and_none_is_zero():
    volume, points = make(), points_in_box()
    at = lambda tau: volume(points, times=torch.full((200, 1), tau))  # noqa: E731
    torch.testing.assert_close(at(0.0), volume(points))
    for name in ("density", "features"):
        assert (at(0.0)[name] - at(0.7)[name]).abs().max() > 0.1
    field, deformation = volume.forward_field(points, torch.full((200, 1), 0.7))
    torch.testing.assert_close(field, at(0.7)["density"])
    assert deformation is None


@pytest.mark.parametrize("n", [200, 2])
def test_one_time_for_all_is_the_same_field(monkeypatch, n):
    """Where a backend makes frames' tables, with many points or few; and where none does."""
    volume, points = make({"backend": "torch"}).double(), points_in_box()[:n].double()
    tau = torch.rand(1, 1).double()
    tables_made = []

    def make_table(*arguments):
        tables_made.append(arguments)
        return frame_table_torch(*arguments)

    results = []
    for make_one, times in ((None, tau.expand(n, 1)), (None, tau), (make_table, tau)):
        twin = HASH_GRIDS["torch"]._replace(frame_table=make_one)
        monkeypatch.setitem(HASH_GRIDS, "torch", twin)
        output = volume(points, output_normal=True, times=times)
        loss = sum((value * torch.arange(len(value))[:, None]).sum() for value in output.values())
        grads = torch.autograd.grad(loss, list(volume.parameters()))
        density = volume.forward_density(points, times)
        results.append([*output.values(), density, *grads])
    for others in results[1:]:
        for value, direct in zip(others, results[0], strict=True):
            torch.testing.assert_close(value, direct)
    assert len(tables_made) == (2 if n == 200 else 0)


def test_amp_changes_nothing():
    volume, points = make(), points_in_box()
    expected = volume(points, output_normal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = volume(points, output_normal=True)
        density, features = volume.forward_density(points), volume.export(points)["features"]
    for name, value in {**output, "features": features}.items():
        torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(density, expected["density"])


def test_level_is_negative_inside():
    volume = make()
    level = volume.forward_level(torch.tensor([[30.0], [20.0]]), 25.0)
    assert level.tolist() == [[-5.0], [5.0]]


def test_outside_the_box_the_encoding_is_the_nearest_points():
    volume = make(density_bias=0.0, radius=0.5)
    outside = torch.tensor([[0.7, 0.1, -0.2], [9.0, -9.0, 0.3]])
    torch.testing.assert_close(volume(outside), volume(outside.clamp(-0.5, 0.5)))


def test_mlp_by_rows_is_the_whole(monkeypatch):
    network = MLP(6, 2, 8, 2, torch.relu, torch.sigmoid)
    x = torch.randn(100, 6)
    whole = network(x)
    monkeypatch.setattr(mlp, "CPU_ROWS", 7)
    torch.testing.assert_close(network(x), whole)
    first, second, last = (layer.weight for layer in network.layers if hasattr(layer, "weight"))
    hidden = torch.relu(torch.relu(x @ first.T) @ second.T)
    torch.testing.assert_close(whole, torch.sigmoid(hidden @ last.T))


def test_mlp_config_reaches_the_networks():
    config = {
        "n_neurons": 8,
        "n_hidden_layers": 2,
        "activation": "Tanh",
        "output_activation": "exp",
    }
    volume = make(mlp_network_config=config)
    shapes = [list(parameter.shape) for parameter in volume.feature_network.parameters()]
    assert shapes == [[8, 6], [8, 8], [3, 8]]
    assert (volume(points_in_box())["features"] > 0).all()
    x = torch.randn(4, 6)
    first, second, last = volume.feature_network.parameters()
    expected = torch.exp(torch.tanh(torch.tanh(x @ first.T) @ second.T) @ last.T)
    torch.testing.assert_close(volume.feature_network(x), expected)


def test_backend_comes_from_the_config():
    volume, points = make(), points_in_box()
    through_torch = make({"backend": "torch"})
    through_torch.load_state_dict(volume.state_dict())
    assert through_torch.encoding.encoding.encoding_time.backend == "torch"
    torch.testing.assert_close(through_torch(points), volume(points), rtol=1e-4, atol=1e-4)


def test_checkpoint_of_another_n_levels_is_explained():
    with pytest.raises(RuntimeError, match="n_levels=5 would fit"):
        make().load_state_dict(make({"n_levels": 5}).state_dict())


@pytest.mark.parametrize(
    "config, message",
    (
        ({"pos_encoding_config": {"n_levls": 8}}, "n_levels"),
        (
            {"pos_encoding_config": {"otype": "HashGridSpatial"}},
            "has to be one of HashGridSpatialTime",
        ),
        ({"pos_encoding_config": {"backend": "tinycuda"}}, "Close: tinycudann"),
        ({"pos_encoding_config": {"n_levels": 0}}, "n_levels is 0.*between 1 and 32"),
        ({"mlp_network_config": {"n_neuron": 8}}, "n_neurons"),
        ({"mlp_network_config": {"otype": "VanilaMLP"}}, "has to be VanillaMLP"),
        ({"mlp_network_config": {"activation": "RELUU"}}, "(?i)reluu"),
        ({"normal_type": "finite_differences"}, "Close: finite_difference"),
        ({"density_bias": "blob_magic"}, "or a finite number.*Close: blob_magic3d"),
        ({"density_activation": "softpluss"}, "softpluss"),
        ({"n_input_dims": 4}, "n_input_dims is 4.*between 3 and 3"),
        ({"density_blob_sdt": 0.5}, "density_blob_std"),
    ),
)
def test_mistakes_in_the_config_name_what_would_do(config, message):
    config = {**config, "pos_encoding_config": {**GRID, **config.get("pos_encoding_config", {})}}
    with pytest.raises(ValueError, match=message):
        ImplicitVolume(config)


def test_normals_of_a_field_without_them_say_what_to_set():
    with pytest.raises(ValueError, match="normal_type is null"):
        make(normal_type=None)(points_in_box(3), output_normal=True)


def test_same_seed_same_field():
    volumes = []
    for _ in range(2):
        torch.manual_seed(11)
        volumes.append(make(rough=False))
    for first, second in zip(*(v.parameters() for v in volumes), strict=True):
        assert torch.equal(first, second)
    # torch's own initialisation of a linear layer, as threestudio's VanillaMLP has it
    weight = volumes[0].density_network.layers[0].weight
    assert weight.abs().max().item() == pytest.approx(1 / 6**0.5, rel=0.05)
