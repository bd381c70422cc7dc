import ctypes
import ctypes.util
import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from animate124.geometry import hash_grid as dispatch
from animate124.geometry import usable
from animate124.geometry.hash_grid import HASH_GRIDS, hash_grid, hash_grid_stencil
from animate124.geometry.hash_grid_torch import GridSpec, hash_grid_torch
from animate124.geometry.stencil import neighbours

from lattice_lines import off_lines

GEOMETRY = Path(dispatch.__file__).parent

# 3D: levels of 125 points (128 entries), 343 (344) and hashed ones; 4D: 625, then hashed ones.
SMALL = {
    dims: GridSpec(
        dims,
        n_levels=4,
        n_features_per_level=2,
        log2_hashmap_size=10,
        base_resolution=5,
        per_level_scale=1.4,
    )
    for dims in (3, 4)
}
# Coordinates up to 4000, whose products with the primes need far more than 32 bits.
FINE = {
    dims: GridSpec(
        dims,
        n_levels=2,
        n_features_per_level=1,
        log2_hashmap_size=12,
        base_resolution=2000,
        per_level_scale=2.0,
    )
    for dims in (3, 4)
}
DIMS = pytest.mark.parametrize("dims", (3, 4))
FAST_BACKENDS = pytest.mark.parametrize(
    "backend", ("numba", pytest.param("tinycudann", marks=pytest.mark.gpu))
)


def points_with_borders(n: int, dims: int, dtype=torch.float64) -> torch.Tensor:
    """Random points, all corners of the box, its centre, and points on some of its faces."""
    borders = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dims)), dtype=dtype)
    inside = torch.rand(n, dims, dtype=dtype)
    on_faces = inside.clone()
    on_faces[:, 0], on_faces[::2, -1] = 0.0, 1.0
    return torch.cat([borders, torch.full((1, dims), 0.5, dtype=dtype), on_faces, inside])


def scale_by_the_c_library(base_resolution: int, per_level_scale: float, level: int) -> float:
    """tiny-cuda-nn's formula, float for float: exp2f(l * log2f(growth)) * base - 1."""
    f = np.float32
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    for name in ("exp2f", "log2f"):
        getattr(libm, name).argtypes = [ctypes.c_float]
        getattr(libm, name).restype = ctypes.c_float
    power = f(libm.exp2f(f(level) * f(libm.log2f(per_level_scale))))
    return float(power * f(base_resolution) - f(1))


def one_point_by_the_formula(point: list[float], table: list[float], spec: GridSpec) -> list[float]:
    """docs/method.md's formulas for one point, in Python's integers."""
    primes = (1, 2654435761, 805459861, 3674653429)
    features, offset = [], 0
    for level in range(spec.n_levels):
        scale = scale_by_the_c_library(spec.base_resolution, spec.per_level_scale, level)
        resolution = math.ceil(scale) + 1
        points = resolution**spec.dims
        size = min(-(-points // 8) * 8, 2**spec.log2_hashmap_size)
        cell = [math.floor(x * scale + 0.5) for x in point]
        rest = [x * scale + 0.5 - c for x, c in zip(point, cell, strict=True)]
        sums = [0.0] * spec.n_features_per_level
        for corner in itertools.product((0, 1), repeat=spec.dims):
            weight = math.prod(r if up else 1 - r for up, r in zip(corner, rest, strict=True))
            coordinates = [c + up for c, up in zip(cell, corner, strict=True)]
            if points <= size:
                index = sum(c * resolution**d for d, c in enumerate(coordinates))
            else:
                index = 0
                for c, prime in zip(coordinates, primes, strict=False):
                    index ^= (c * prime) & 0xFFFFFFFF
            entry = (offset + index % size) * spec.n_features_per_level
            for c in range(spec.n_features_per_level):
                sums[c] += weight * table[entry + c]
        features += sums
        offset += size
    return features


@DIMS
@pytest.mark.parametrize("specs", (SMALL, FINE))
def test_definition_is_the_formula_point_by_point(dims, specs):
    spec = specs[dims]
    table = torch.randn(spec.n_params, dtype=torch.float64)
    x = points_with_borders(20, dims)
    expected = [one_point_by_the_formula(p, table.tolist(), spec) for p in x.tolist()]
    torch.testing.assert_close(hash_grid_torch(x, table, spec), torch.tensor(expected).double())


def test_small_specs_have_dense_rounded_and_hashed_levels():
    assert [level.size for level in SMALL[3].levels] == [128, 344, 1000, 1024]
    assert [level.hashed for level in SMALL[3].levels] == [False, False, False, True]
    assert [level.hashed for level in SMALL[4].levels] == [False, True, True, True]
    assert all(level.hashed for level in FINE[3].levels + FINE[4].levels)


@pytest.mark.slow
def test_scales_and_sizes_are_those_of_the_published_formula_in_float32():
    growths = [1 + k / 24 for k in range(1, 25)] + [2 ** (1 / k) for k in range(1, 13)]
    growths += [1.3819, 1.447269237440378, 1.51571656651, 1.26, 1.38191288, 1.5]
    others = 0
    for base, growth, log2 in itertools.product((4, 8, 15, 16, 32), growths, (14, 19)):
        settings = {"log2_hashmap_size": log2, "base_resolution": base, "per_level_scale": growth}
        spec = GridSpec(3, n_levels=13, **settings)
        expected = [scale_by_the_c_library(base, growth, level) for level in range(13)]
        # the C library's last digit is a machine's own
        assert spec.scales == pytest.approx(expected, rel=2**-22, abs=2**-20)
        sides = [math.ceil(scale) + 1 for scale in expected]
        sizes = [min((side**3 + 7) // 8 * 8, 2**log2) for side in sides]
        assert [level.size for level in spec.levels] == sizes
        others += GridSpec(3, n_levels=13, float64_scale=True, **settings).n_params != spec.n_params
    assert others > 10  # so the rounding decides about sizes, such as for a growth of sqrt 2


def test_default_grids_are_as_large_as_tiny_cuda_nns():
    assert GridSpec(3).n_params == 12_599_920
    assert GridSpec(4).n_params == 15_474_688
    assert GridSpec(3).n_output_dims == 32


@DIMS
def test_weights_of_a_cell_sum_to_one(dims):
    x = points_with_borders(50, dims)
    ones = torch.ones(SMALL[dims].n_params, dtype=torch.float64)
    features = hash_grid_torch(x, ones, SMALL[dims])
    torch.testing.assert_close(features, torch.ones_like(features))


@DIMS
def test_gradients_of_the_definition_to_second_order(dims):
    spec = GridSpec(dims, n_levels=2, log2_hashmap_size=4, base_resolution=2, per_level_scale=2.3)
    # away from lattice lines (positions x.5), where the derivative in x jumps
    x = (0.1 + 0.8 * torch.rand(2, dims, dtype=torch.float64)).requires_grad_()
    for level in spec.levels:
        position = x.detach() * level.scale + 0.5
        assert ((position - position.round()).abs() > 1e-4).all()
    table = torch.randn(spec.n_params, dtype=torch.float64, requires_grad=True)
    run = lambda x, table: hash_grid_torch(x, table, spec)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, table))
    assert torch.autograd.gradgradcheck(run, (x, table))


@FAST_BACKENDS
@DIMS
@pytest.mark.parametrize("specs", (SMALL, FINE))
def test_backend_has_the_definitions_values_and_gradient(backend, dims, specs):
    pytest.importorskip(backend)
    device = "cuda" if backend == "tinycudann" else "cpu"
    spec = specs[dims]
    x = points_with_borders(500, dims, torch.float32).to(device)
    table = torch.randn(spec.n_params, device=device, requires_grad=True)
    grad_out = torch.randn(len(x), spec.n_output_dims, device=device)
    results = []
    for name in (backend, "torch"):
        features = hash_grid(x, table, spec, name)
        results.append((features.detach(), *torch.autograd.grad(features, table, grad_out)))
    # tiny-cuda-nn's scales are float32, ours float64: at 4000 cells that is up to 1e-3 of a cell
    tolerance = 1e-2 if backend == "tinycudann" and specs is FINE else 1e-4
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def points_off_lines(n: int, spec: GridSpec) -> torch.Tensor:
    x = torch.rand(3 * n, spec.dims)
    return x[off_lines(x, spec, margin=0.02)][:n]


@FAST_BACKENDS
@DIMS
@pytest.mark.parametrize("specs", (SMALL, FINE))
@pytest.mark.parametrize("needed", ((True, True), (True, False), (False, True)))
def test_backend_has_the_definitions_gradients_in_points_and_table(backend, dims, specs, needed):
    pytest.importorskip(backend)
    device = "cuda" if backend == "tinycudann" else "cpu"
    spec = specs[dims]
    x, table = points_off_lines(300, spec), torch.randn(spec.n_params)
    x[::3, 0] += 1  # outside of the box
    grad_out = torch.randn(len(x), spec.n_output_dims)
    results = []
    for name, dtype in ((backend, torch.float32), ("torch", torch.float64)):
        arguments = [
            value.to(device, dtype, copy=True).requires_grad_(own)
            for value, own in zip((x, table), needed, strict=True)
        ]
        hash_grid(*arguments, spec, name).backward(grad_out.to(device, dtype))
        results.append([argument.grad for argument in arguments])
    for own, value, expected in zip(needed, *results, strict=True):
        assert (value is not None) == (expected is not None) == own
        if own:
            assert value.dtype == torch.float32
            assert (value - expected).norm() <= 1e-3 * expected.norm()
    if needed[0]:
        assert not results[0][0][::3, 0].any() and results[0][0][1::3].all()


@pytest.mark.parametrize("missing", ("to_points", "to_table"))
def test_numba_runs_no_kernel_for_a_gradient_that_isnt_needed(monkeypatch, missing):
    pytest.importorskip("numba")
    from animate124.geometry import hash_grid_numba

    x, table = torch.rand(50, 3), torch.randn(SMALL[3].n_params)
    grads = []
    for needed in ((True, True), (missing == "to_table", missing == "to_points")):
        if not all(needed):
            plan = hash_grid_numba.level_plan(SMALL[3], np.dtype(np.float32))
            kernels = {"forward", "to_points", "to_table"} - {missing}
            plan = [
                (SimpleNamespace(**{name: getattr(own, name) for name in kernels}), *rest)
                for own, *rest in plan
            ]
            monkeypatch.setattr(hash_grid_numba, "level_plan", lambda *_, plan=plan: plan)
        arguments = [
            value.clone().requires_grad_(own) for value, own in zip((x, table), needed, strict=True)
        ]
        hash_grid(*arguments, SMALL[3], "numba").square().sum().backward()
        grads.append(arguments[missing == "to_points"].grad)
    assert torch.equal(*grads)  # and what is needed is the same, bit for bit


@DIMS
@pytest.mark.parametrize("table_alone", (False, True))
def test_numbas_gradients_can_be_differentiated_again(dims, table_alone):
    """By way of the definition, as analytic normals in training ask for."""
    pytest.importorskip("numba")
    spec = SMALL[dims]
    x, table = points_off_lines(20, spec), torch.randn(spec.n_params)
    grad_out = torch.randn(len(x), spec.n_output_dims)
    results = []
    for backend in ("numba", "torch"):
        values = x, table, grad_out
        own_x, own_table, own_grad = (value.clone().requires_grad_() for value in values)
        if table_alone:
            own_x.requires_grad_(False)
        inner = own_table if table_alone else own_x
        outer = own_grad if table_alone else (own_table, own_grad)
        features = hash_grid(own_x, own_table, spec, backend)
        (grad,) = torch.autograd.grad(features, inner, own_grad, create_graph=True)
        results.append([grad, *torch.autograd.grad(grad.square().sum(), outer)])
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


@FAST_BACKENDS
def test_backend_takes_no_points_and_gives_a_zero_gradient(backend):
    pytest.importorskip(backend)
    device = "cuda" if backend == "tinycudann" else "cpu"
    table = torch.randn(SMALL[3].n_params, device=device, requires_grad=True)
    x = torch.zeros(0, 3, device=device, requires_grad=True)
    features = hash_grid(x, table, SMALL[3], backend)
    features.sum().backward()
    assert features.shape == (0, 8) and x.grad.shape == (0, 3)
    assert not table.grad.any()


@DIMS
@pytest.mark.parametrize("backend", ("torch", "numba"))
def test_points_outside_the_box_take_the_nearest_ones_features(dims, backend):
    pytest.importorskip(backend)
    x = torch.rand(100, dims) * 4 - 2
    table = torch.randn(SMALL[dims].n_params)
    outside = hash_grid(x, table, SMALL[dims], backend)
    torch.testing.assert_close(outside, hash_grid_torch(x.clamp(0, 1), table, SMALL[dims]))


@DIMS
@pytest.mark.parametrize("backend", ("torch", "numba"))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
def test_points_that_are_no_numbers_read_nothing_outside_the_table(dims, backend, value):
    pytest.importorskip(backend)
    x = torch.rand(64, dims)
    x[::2, 1] = value
    x.requires_grad_()
    table = torch.randn(SMALL[dims].n_params, requires_grad=True)
    features = hash_grid(x, table, SMALL[dims], backend)
    features.sum().backward()
    assert features[1::2].isfinite().all() and x.grad[1::2].isfinite().all()


@DIMS
@pytest.mark.parametrize("backend", ("torch", "numba"))
@pytest.mark.parametrize("n", (0, 40))
def test_stencil_is_the_features_of_points_and_of_their_neighbours(dims, backend, n):
    pytest.importorskip(backend)
    x, spec, step = torch.rand(n, dims) * 1.2 - 0.1, SMALL[dims], 0.06
    table = torch.randn(spec.n_params)
    own, near = hash_grid_stencil(x, step, table, spec, backend)
    torch.testing.assert_close(own, hash_grid(x, table, spec))
    for k in range(6):
        moved = x.clone()
        moved[:, k // 2] += (step, -step)[k % 2]
        torch.testing.assert_close(near[:, k], hash_grid(moved, table, spec))
        torch.testing.assert_close(neighbours(x, step)[:, k], moved)


def test_numba_doesnt_depend_on_the_number_of_threads(monkeypatch):
    pytest.importorskip("numba")
    from animate124.geometry import hash_grid_numba

    x, table = torch.rand(999, 4, requires_grad=True), torch.randn(SMALL[4].n_params)
    table.requires_grad_()
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(hash_grid_numba, "thread_count", lambda points, n=threads: n)
        features = hash_grid(x, table, SMALL[4], "numba")
        results.append((features, *torch.autograd.grad(features.square().sum(), (x, table))))
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_numba_works_where_nothing_can_be_cached(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    path = GEOMETRY / "hash_grid_numba_kernels.py"
    module_spec = importlib.util.spec_from_file_location("kernels_without_cache", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert module.kernel(lambda a: a + 1)(1) == 2


def test_numbas_disk_cache_serves_the_package_under_any_name():
    """Kernels compiled as animate124 load again as threestudio-animate124."""
    pytest.importorskip("numba")
    x = torch.linspace(0, 1, 300).view(-1, 3)
    table = torch.linspace(0, 1, SMALL[3].n_params)
    expected = hash_grid(x, table, SMALL[3], "numba").sum().item()
    script = f"""
import importlib, sys, torch, types
name = "threestudio-animate124"
package = sys.modules[name] = types.ModuleType(name)
package.__path__ = [r"{GEOMETRY.parent}"]
grid = importlib.import_module(name + ".geometry.hash_grid")
spec = grid.GridSpec(3, 4, 2, 10, 5, 1.4)
x, table = torch.linspace(0, 1, 300).view(-1, 3), torch.linspace(0, 1, spec.n_params)
print(grid.hash_grid(x, table, spec, "numba").sum().item())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(expected)


def test_auto_takes_numba_on_cpu_and_torch_for_other_float_types():
    pytest.importorskip("numba")
    x, table = torch.rand(5, 3), torch.rand(SMALL[3].n_params)
    assert dispatch.choose_backend(x, table, SMALL[3]) == "numba"
    assert dispatch.choose_backend(x.double(), table.double(), SMALL[3]) == "torch"
    assert dispatch.choose_backend(x, table, SMALL[3], "torch") == "torch"
    assert dispatch.choose_backend(x.requires_grad_(), table, SMALL[3]) == "numba"


def test_auto_goes_through_torch_and_says_so_where_a_fast_backend_doesnt_import(
    monkeypatch, tmp_path
):
    (tmp_path / "broken_backend.py").write_text("raise OSError('no such compute capability')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=r"broken_backend.*no such compute capability.*torch"):
        assert not usable.is_usable("broken_backend")
    assert not usable.is_usable("a_backend_that_isnt_there")


def test_numba_refuses_points_and_table_of_two_float_types():
    pytest.importorskip("numba")
    with pytest.raises(ValueError, match="one float type"):
        hash_grid(torch.rand(5, 3).double(), torch.rand(SMALL[3].n_params), SMALL[3], "numba")


def test_tinycudann_refuses_tensors_of_the_cpu():
    with pytest.raises(ValueError, match="wants CUDA tensors"):
        hash_grid(torch.rand(5, 3), torch.rand(SMALL[3].n_params), SMALL[3], "tinycudann")


class TinycudannEncoding(torch.nn.Module):
    """What we use of `tinycudann.Encoding`: parameters of its own, a config, a call."""

    def __init__(self, n_input_dims, encoding_config, dtype):
        super().__init__()
        assert encoding_config["otype"] == "HashGrid" and dtype == torch.float32
        settings = {name: value for name, value in encoding_config.items() if name != "otype"}
        self.spec = GridSpec(n_input_dims, **settings)
        extra = self.spec.base_resolution == 7  # as if its rounding made a level larger
        self.params = torch.nn.Parameter(torch.zeros(self.spec.n_params + extra))

    def forward(self, x):
        return hash_grid_torch(x, self.params, self.spec)


def test_tinycudanns_encoding_works_with_our_table_in_place_of_its_own(monkeypatch):
    from animate124.geometry import hash_grid_tinycudann as twin

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=TinycudannEncoding))
    twin.encoding.cache_clear()
    x, table = torch.rand(9, 4), torch.randn(SMALL[4].n_params, requires_grad=True)
    module = twin.encoding(SMALL[4], torch.device("cpu"))
    features = twin.call_with_table(module, table, x)
    expected = hash_grid_torch(x, table, SMALL[4])
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(
        torch.autograd.grad(features.sum(), table), torch.autograd.grad(expected.sum(), table)
    )
    assert module.params.numel() == 0
    with pytest.raises(ValueError, match=r"lays .* out in"):
        twin.encoding(GridSpec(3, n_levels=1, base_resolution=7), torch.device("cpu"))
    twin.encoding.cache_clear()


def test_unknown_backend_names_close_ones():
    with pytest.raises(ValueError, match=r"'nubma'.*\['numba'"):
        hash_grid(torch.rand(5, 3), torch.rand(SMALL[3].n_params), SMALL[3], "nubma")


def test_sizes_that_dont_fit_are_named():
    with pytest.raises(ValueError, match=f"table of {SMALL[3].n_params} floats"):
        hash_grid(torch.rand(5, 3), torch.rand(7), SMALL[3])
    with pytest.raises(ValueError, match="Points of 3 dimensions"):
        hash_grid(torch.rand(5, 4), torch.rand(SMALL[3].n_params), SMALL[3])


@pytest.mark.parametrize(
    "settings", ({"dims": 5}, {"n_levels": 0}, {"log2_hashmap_size": 40}, {"base_resolution": 1})
)
def test_impossible_grids_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is from"):
        GridSpec(**{"dims": 3, **settings})


def test_grids_that_float32_cannot_tell_apart_are_refused():
    with pytest.raises(ValueError, match=r"finest level .* smaller n_levels or per_level_scale"):
        GridSpec(3, n_levels=32, per_level_scale=2.0)


def test_backends_are_the_documented_ones():
    assert list(HASH_GRIDS) == ["torch", "numba", "cuda", "tinycudann"]
