"""The CUDA kernels against the torch definitions in float64."""

import itertools

import pytest
import torch
from animate124.geometry import hash_grid_cuda, mlp_cuda
from animate124.geometry.frame_table import frame_spec, frame_table_torch
from animate124.geometry.hash_grid import choose_backend, hash_grid, hash_grid_stencil
from animate124.geometry.hash_grid_cuda import frame_table_cuda, source
from animate124.geometry.hash_grid_torch import GridSpec
from animate124.geometry.implicit_volume import ImplicitVolume
from animate124.geometry.mlp_cuda import two_layers, two_layers_cuda
from animate124.geometry.stencil import neighbours
from animate124.kernels import cuda_program

from host_kernels import run_on_host
from lattice_lines import off_lines

SETTINGS = {
    "small": {
        "n_levels": 5,
        "log2_hashmap_size": 10,
        "base_resolution": 5,
        "per_level_scale": 1.4,
    },
    "toy": {"n_levels": 8, "log2_hashmap_size": 14},
    "published": {},
}
SPECS = {
    f"{name} {kind}": make(settings)
    for name, settings in SETTINGS.items()
    for kind, make in (
        ("3D", lambda settings: GridSpec(3, **settings)),
        ("4D", lambda settings: GridSpec(4, **settings)),
        ("frame", lambda settings: frame_spec(GridSpec(3, **settings))),
    )
}


def points(n: int, dims: int) -> torch.Tensor:
    return corners_and_others(n, dims).cuda()


def corners_and_others(n: int, dims: int) -> torch.Tensor:
    """n points, first all corners of the box, then others on faces, inside and outside."""
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dims)))
    others = torch.rand(max(n - len(corners), 0), dims)
    others[::3] = others[::3] * 1.4 - 0.2
    others[1::3, 0], others[1::4, 1] = 0.0, 1.0
    if dims == 4:
        others[:, 3].clamp_(0, 1)
        others[::5, 3], others[1::5, 3] = 0.0, 1.0
    return torch.cat([corners, others])[:n]


def assert_near(value: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Both in norm and entry by entry, as a part of the largest entry."""
    assert value.shape == expected.shape and value.dtype == torch.float32
    error = (value.double() - expected).abs()
    assert error.norm() <= tolerance * expected.norm()
    if error.numel():
        assert error.max() <= tolerance * expected.abs().max()


def features_of(x, step, table, spec, backend):
    if step is None:
        return [hash_grid(x, table, spec, backend)]
    return hash_grid_stencil(x, step, table, spec, backend)


def along_a_ray(n: int, dims: int) -> torch.Tensor:
    """n points, one after the other on lines through the box, as samples of rays lie."""
    starts, ends = torch.rand(2, -(-n // 100), 1, dims)
    return (starts + torch.linspace(0, 1, 100)[:, None] * (ends - starts)).flatten(0, 1)[:n]


@pytest.mark.parametrize("name", ("small 3D", "small 4D", "small frame", "published 3D"))
@pytest.mark.parametrize("step", (None, 0.005, 0.06))
def test_the_kernels_arithmetic_is_the_definitions_on_a_host_too(tmp_path, monkeypatch, name, step):
    """As C++, one thread after the other: features, and the table's gradient, to which a thread
    takes samples that lie in one cell together."""
    spec, types = SPECS[name], ["const float*", "int", "float2*", "float", "float2*", "float2*"]
    run_on_host(monkeypatch, hash_grid_cuda, tmp_path, {"forward": types, "backward": types})
    rays = along_a_ray(700, spec.dims)
    x = torch.cat([rays, corners_and_others(333, spec.dims), rays[:1].expand(40, -1)])
    table = torch.randn(spec.n_params)
    exact = table.double().requires_grad_()
    features = features_of(x.double(), step, exact, spec, "torch")
    grads = [torch.randn(out.shape, dtype=torch.float64) for out in features]
    grads[0][::4], grads[-1][::4] = 0, 0
    (expected,) = torch.autograd.grad(features, exact, grads)

    values = [torch.empty_like(out, dtype=torch.float32) for out in features]
    hash_grid_cuda.run("forward", spec, step, x, table, values)
    grad = torch.zeros_like(table)
    hash_grid_cuda.run("backward", spec, step, x, grad, [slope.float() for slope in grads])
    for value, of_torch in zip([*values, grad], [*features, expected], strict=True):
        assert_near(value, of_torch.detach())


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("n", (0, 1, 31, 1003))
@pytest.mark.parametrize("step", (None, 0.005, 0.06))
def test_features_and_gradient_are_the_definitions(name, n, step):
    spec = SPECS[name]
    x, table = points(n, spec.dims), torch.randn(spec.n_params, device="cuda")
    if n > 1000:
        x[-700:] = along_a_ray(700, spec.dims).cuda()
    results = []
    for backend, dtype in (("cuda", torch.float32), ("torch", torch.float64)):
        own_table = table.to(dtype).requires_grad_()
        features = features_of(x.to(dtype), step, own_table, spec, backend)
        torch.manual_seed(1)
        weights = [torch.randn(out.shape).to(out) for out in features]
        if step is not None:
            weights[1][::3, 2] = 0  # what samples without a normal get
            weights[0][::4], weights[1][::4] = 0, 0
        grad = torch.autograd.grad(features, own_table, weights)
        results.append([*features, *grad])
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*SPECS, "20 levels"])
@pytest.mark.parametrize("step", (None, 0.005, 0.06))
def test_gradients_in_the_points_are_the_definitions(name, step):
    """Alone and with the table's; a sample's levels may be those of two blocks."""
    spec = SPECS.get(name) or GridSpec(3, 20, 2, 10, 4, 1.15)
    x = points(3003, spec.dims).cpu()
    far = off_lines(x, spec, 0.003)
    if step is not None:
        near = neighbours(x, step).flatten(0, 1)
        far &= off_lines(near, spec, 0.003).view(-1, 6).all(dim=-1)
    x, table = x[far], torch.randn(spec.n_params)
    assert len(x) > 100
    results = {}
    for backend, dtype in (("cuda", torch.float32), ("torch", torch.float64)):
        for needed in ((True, True), (True, False), (False, True)):
            arguments = [
                value.to("cuda", dtype, copy=True).requires_grad_(own)
                for value, own in zip((x, table), needed, strict=True)
            ]
            features = features_of(arguments[0], step, arguments[1], spec, backend)
            torch.manual_seed(1)
            weights = [torch.randn(out.shape).to(out) for out in features]
            weights[0][::4], weights[-1][::4] = 0, 0
            torch.autograd.backward(features, weights)
            assert [argument.grad is not None for argument in arguments] == list(needed)
            results[backend, needed] = [argument.grad for argument in arguments]
    for needed in ((True, True), (True, False), (False, True)):
        for value, expected in zip(results["cuda", needed], results["torch", needed], strict=True):
            if expected is not None:
                assert_near(value, expected)
    both = results["cuda", (True, True)][0]
    assert torch.equal(both, results["cuda", (True, False)][0])  # whatever the order of threads


@pytest.mark.gpu
@pytest.mark.parametrize("needed, expected", (((True, False), "points"), ((False, True), "table")))
def test_no_kernel_runs_for_a_gradient_that_isnt_needed(monkeypatch, needed, expected):
    ran, run = [], hash_grid_cuda.run
    monkeypatch.setattr(
        hash_grid_cuda, "run", lambda name, *rest: (ran.append(name), run(name, *rest))
    )
    spec = SPECS["small 3D"]
    x, table = torch.rand(40, 3, device="cuda"), torch.randn(spec.n_params, device="cuda")
    x.requires_grad_(needed[0]), table.requires_grad_(needed[1])
    hash_grid(x, table, spec, "cuda").sum().backward()
    assert ran == ["forward", {"points": "backward_to_points", "table": "backward"}[expected]]


@pytest.mark.gpu
@pytest.mark.parametrize("step", (None, 0.06))
def test_gradients_can_be_differentiated_again(step):
    """By way of the definition, as analytic normals in training ask for."""
    spec, results = SPECS["small 3D"], []
    x = torch.rand(60, 3)
    x, table = x[off_lines(x, spec, 0.02)].cuda(), torch.randn(spec.n_params, device="cuda")
    for backend in ("cuda", "torch"):
        own_x, own_table = (value.clone().requires_grad_() for value in (x, table))
        features = features_of(own_x, step, own_table, spec, backend)
        loss = sum(out.square().sum() for out in features)
        (grad,) = torch.autograd.grad(loss, own_x, create_graph=True)
        results.append([grad, *torch.autograd.grad(grad.square().sum(), (own_x, own_table))])
    for value, expected in zip(*results, strict=True):
        atol = 1e-2 * float(expected.abs().max())
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=atol)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("tau", (0.0, 0.37, 1.0))
def test_frame_table_and_its_gradients_are_the_definitions(name, tau):
    space, time = (GridSpec(dims, **SETTINGS[name]) for dims in (3, 4))
    tables = [torch.randn(spec.n_params, device="cuda") for spec in (space, time)]
    tau = torch.full((1, 1), tau, device="cuda")
    results = []
    for make, dtype in ((frame_table_cuda, torch.float32), (frame_table_torch, torch.float64)):
        own = [table.to(dtype).requires_grad_() for table in tables]
        frame = make(*own, tau.to(dtype), space, time)
        torch.manual_seed(1)
        grads = torch.autograd.grad(frame, own, torch.randn(frame.shape).to(frame))
        results.append([frame, *grads])
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected)


def test_the_frame_tables_arithmetic_is_the_definitions_on_a_host_too(tmp_path, monkeypatch):
    space, time = (GridSpec(dims, **SETTINGS["small"]) for dims in (3, 4))
    types = {
        "forward": ["const float*", "const float2*", "const float2*", "float2*"],
        "backward": ["const float*", "const float2*", "float2*", "float2*"],
    }
    run_on_host(monkeypatch, hash_grid_cuda, tmp_path, types, program="frame_program")
    monkeypatch.setattr(hash_grid_cuda, "check_table", lambda table, spec: None)
    tables, results = [torch.randn(spec.n_params) for spec in (space, time)], []
    for make, dtype in ((frame_table_cuda, torch.float32), (frame_table_torch, torch.float64)):
        own = [table.to(dtype).requires_grad_() for table in tables]
        frame = make(*own, torch.full((1, 1), 0.37, dtype=dtype), space, time)
        torch.manual_seed(1)
        grads = torch.autograd.grad(frame, own, torch.randn(frame.shape).to(frame))
        results.append([frame.detach(), *grads])
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected)


@pytest.mark.gpu
def test_a_frozen_table_gets_no_gradient():
    space, time = (GridSpec(dims, **SETTINGS["small"]) for dims in (3, 4))
    h3 = torch.randn(space.n_params, device="cuda")
    h4 = torch.randn(time.n_params, device="cuda", requires_grad=True)
    frame_table_cuda(h3, h4, torch.zeros(1, 1, device="cuda"), space, time).sum().backward()
    assert h3.grad is None and h4.grad.abs().sum() > 0


@pytest.mark.gpu
def test_points_that_are_no_numbers_read_nothing_outside_the_table():
    spec = SPECS["small 3D"]
    x = torch.rand(64, 3, device="cuda")
    x[::2, 1] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30]).repeat(8)
    x.requires_grad_()
    table = torch.randn(spec.n_params, device="cuda", requires_grad=True)
    features = hash_grid(x, table, spec, "cuda")
    features[1::2].sum().backward()
    assert features[1::2].isfinite().all() and table.grad.isfinite().all()
    assert x.grad[1::2].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", ((32, 64, 1), (32, 64, 3), (16, 64, 1), (8, 16, 4)))
@pytest.mark.parametrize("n", (0, 1, 63, 100_003))
def test_two_layers_and_their_gradients_are_the_definitions(sizes, n):
    inputs, hidden, outputs = sizes
    shapes = (n, inputs), (hidden, inputs), (outputs, hidden)
    arguments = [torch.randn(shape, device="cuda") for shape in shapes]
    weights = torch.randn(n, outputs, device="cuda")
    assert mlp_cuda.fits(*arguments)
    results = []
    for network, dtype in ((two_layers_cuda, torch.float32), (two_layers, torch.float64)):
        own = [argument.to(dtype).requires_grad_() for argument in arguments]
        out = network(*own)
        results.append([out, *torch.autograd.grad(out, own, weights.to(dtype))])
    for value, expected in zip(*results, strict=True):
        assert_near(value, expected, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", ((32, 64, 1), (16, 64, 3)))
def test_two_frozen_layers_pass_the_same_gradient_on_and_compute_none_of_their_own(
    monkeypatch, sizes
):
    inputs, hidden, outputs = sizes
    shapes = (1003, inputs), (hidden, inputs), (outputs, hidden)
    x, *weights = (torch.randn(shape, device="cuda") for shape in shapes)
    ran, run, grads = [], mlp_cuda.run, []
    monkeypatch.setattr(mlp_cuda, "run", lambda name, *rest: (ran.append(name), run(name, *rest)))
    for frozen in (True, False):
        own = x.clone().requires_grad_()
        layers = [weight.clone().requires_grad_(not frozen) for weight in weights]
        two_layers_cuda(own, *layers).square().sum().backward()
        assert all((layer.grad is None) == frozen for layer in layers)
        grads.append(own.grad)
    torch.testing.assert_close(*grads)
    assert ran == ["forward", "backward_to_input", "forward", "backward"]


@pytest.mark.gpu
@pytest.mark.parametrize("frozen", (False, True))
def test_two_layers_can_be_differentiated_twice(frozen):
    x, first, second = (torch.randn(n, 8, device="cuda") for n in (20, 16, 16))
    x.requires_grad_(), first.requires_grad_(not frozen)
    arguments = x, first, second.T[:1].contiguous().requires_grad_()
    grads = []
    for network in (two_layers_cuda, two_layers):
        (slope,) = torch.autograd.grad(network(*arguments).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum(), arguments[2 if frozen else 1 :]))
    torch.testing.assert_close(*grads)


def make(backend: str, name: str, **config) -> ImplicitVolume:
    torch.manual_seed(5)
    grid = {**SETTINGS[name], "backend": backend, **config}
    volume = ImplicitVolume({"pos_encoding_config": grid}).cuda()
    for table in volume.encoding.parameters():
        torch.nn.init.normal_(table, std=0.1)
    return volume


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("toy", "published"))
@pytest.mark.parametrize("static", (False, True))
@pytest.mark.parametrize("frames", (1, 3, None))
def test_the_fast_field_is_the_torch_one(name, static, frames):
    """Samples of some frames, or each at a time of its own (None)."""
    x = ((torch.rand(30_000, 3) * 2 - 1) * 1.02).cuda()
    times = torch.rand(30_000, 1).cuda() if frames is None else torch.rand(frames, 1).cuda()
    if frames is not None:
        times = times.repeat_interleave(30_000 // frames, dim=0)
    results = []
    for backend in ("auto", "torch"):
        volume = make(backend, name, static=static)
        space = volume.encoding.encoding.encoding
        chosen = choose_backend(x, space.params, space.spec, space.backend)
        assert chosen == {"auto": "cuda", "torch": "torch"}[backend]
        volume = volume if backend == "auto" else volume.double()
        out = volume(x, output_normal=True, times=times)
        torch.manual_seed(1)
        loss = sum((torch.randn(v.shape).to(v) * v).sum() for v in out.values())
        loss.backward()
        density = volume.forward_density(x, times)
        values = [out["density"], out["features"], out["normal"], density]
        grads = [p.grad for p in volume.parameters() if p.grad is not None]
        results.append((values, grads))
    (values, grads), (expected_values, expected_grads) = results
    for value, expected in zip(values, expected_values, strict=True):
        assert_near(value.detach(), expected.detach())
    assert len(grads) == (5 if static else 6)
    # A ReLU at its kink is on in one and off in the other, by rounding: torch's own float32 and
    # float64 are up to 1e-2 apart here.
    for value, expected in zip(grads, expected_grads, strict=True):
        assert (value - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("times", (1, 2000))
def test_analytic_normals_in_training_are_the_definitions(times):
    """With a time for all, the frame's table passes a gradient on, too."""
    normals = []
    for backend in ("auto", "torch"):
        volume = make(backend, "toy")
        volume.normal_type = "analytic"
        x = (torch.rand(2000, 3, generator=torch.Generator().manual_seed(2)) - 0.5).cuda()
        normal = volume(x, output_normal=True, times=x.new_full((times, 1), 0.3))["normal"]
        normal[:, 0].sum().backward()
        normals.append((normal.detach(), volume.density_network.layers[0].weight.grad))
    for value, expected in zip(*normals, strict=True):  # but for a ReLU at its kink
        assert (value - expected).norm() <= 2e-2 * expected.norm()


def test_tensors_of_the_cpu_are_refused():
    spec = SPECS["small 3D"]
    with pytest.raises(ValueError, match=r"on cpu.*'auto'"):
        hash_grid(torch.rand(5, 3), torch.rand(spec.n_params), spec, "cuda")


def test_where_no_kernel_can_be_compiled_a_warning_says_so_and_what_may_help(monkeypatch):
    def fail(*arguments):
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(cuda_program, "code_of", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda_program.is_usable.cache_clear()
    with pytest.warns(UserWarning, match=r"cuda.*pip install cuda-bindings"):
        assert not cuda_program.is_usable(torch.device("cuda", 0))
    cuda_program.is_usable.cache_clear()


def test_constants_of_the_kernels_are_those_of_the_definition():
    """Numbers survive the way through C: scales as floats, keys as unsigned integers."""
    spec = GridSpec(4, n_levels=3)
    text = source("hash_grid.cu", {"DIMS": 4}, LEVELS=spec)
    start = text.index("LEVELS[] = {") + len("LEVELS[] = {")
    lines = text[start : text.index("};", start)].strip().splitlines()
    for line, level in zip(lines, spec.levels, strict=True):
        numbers = line.replace("{", " ").replace("}", " ").replace(",", " ").split()
        scale, size, offset, hashed, *multipliers = numbers
        assert float(scale.rstrip("f")) == level.scale
        assert [int(n.rstrip("u")) for n in (size, offset)] == [level.size, level.offset]
        assert hashed == str(level.hashed).lower()
        assert tuple(int(n.rstrip("u")) for n in multipliers) == level.multipliers
