"""D by itself: its functions of time, its paths, its inverse, and how far it is from rigid."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from animate124.geometry import rigidity
from animate124.geometry.deformation import (
    TURN,
    Deformation,
    Lattice,
    WholeMotion,
    back,
    onward,
    read,
    rotation,
    spline,
    time_functions,
)
from animate124.geometry.lattice_inverse import invert, look_up
from animate124.geometry.times import Runs
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation


def random_deformation(size=0.05, turn=0.1, cells=(2, 4, 8), spans=4) -> Deformation:
    """One that moves a lattice's neighbouring nodes against each other by some `size` of a cell."""
    deformation = Deformation(list(cells), spans)
    torch.nn.init.normal_(deformation.whole.twist, std=turn)
    for lattice, n in zip(deformation.lattices, cells, strict=True):
        assert isinstance(lattice, Lattice)
        torch.nn.init.normal_(lattice.nodes, std=size / n)
    return deformation.requires_grad_(False)


def least_volume(deformation, tau) -> float:
    """The least det F of the cells' centres."""
    return float(torch.linalg.det(rigidity.lattice_gradient(deformation.table(tau))).min())


# ------------------------------------------------------------------------------ time


def test_splines_are_scipys_and_sum_to_one():
    spans, tau = 5, torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    ours = spline(tau, spans)
    knots = np.arange(-3, spans + 4) / spans
    theirs = [BSpline(knots, row, 3)(tau[:, 0].numpy()) for row in np.eye(spans + 3)]
    np.testing.assert_allclose(ours.numpy(), np.stack(theirs, axis=-1), atol=1e-12)
    torch.testing.assert_close(ours.sum(-1), torch.ones(101, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 3, 64, 1001])
def test_functions_of_time_are_zero_to_the_bit_at_the_start(n):
    for spans in (1, 4, 16):
        assert not time_functions(torch.zeros(n, 1), spans).any()
        assert time_functions(torch.full((n, 1), 0.01), spans).any()


@pytest.mark.parametrize("n", [1, 7, 5000])
def test_at_the_start_points_are_where_they_are_to_the_bit(n):
    deformation, x = random_deformation(0.3, 1.0), torch.rand(n, 3) * 1.4 - 0.2
    assert torch.equal(deformation(x, torch.zeros(1, 1)), x)
    assert torch.equal(deformation(x, torch.zeros(n, 1)), x)
    tau = torch.rand(n, 1)  # so many that they take the other path
    tau[::2] = 0
    assert torch.equal(deformation(x, tau)[::2], x[::2])
    assert not torch.equal(deformation(x, torch.ones(1, 1)), x)


@pytest.mark.parametrize("spans", [1, 2, 8])
def test_a_closed_motion_ends_where_it_began_and_is_kept_before_its_last_three_spans(spans):
    deformation = random_deformation(0.3, spans=spans).double()
    x, before = torch.rand(50, 3, dtype=torch.float64), max(spans - 3, 0) / spans
    end, moments = torch.ones(1, 1).double(), torch.linspace(0, before, 5).double()[:, None]
    assert (deformation(x, end) - x).norm(dim=-1).min() > 0.01
    kept = [deformation(x, tau[None]) for tau in moments]
    deformation.close()
    torch.testing.assert_close(deformation(x, end), x, atol=1e-9, rtol=0)
    torch.testing.assert_close([deformation(x, tau[None]) for tau in moments], kept)
    again = copy.deepcopy(deformation.state_dict())
    deformation.close()
    torch.testing.assert_close(deformation.state_dict(), again)


@pytest.mark.parametrize(("degrees", "end"), [(170, 0), (350, 360), (-700, -720)])
def test_a_closed_spin_is_finished_and_not_turned_back(degrees, end):
    deformation = random_deformation(0, 0, spans=4).double()
    deformation.whole.twist[3:, 2] = math.radians(degrees) / TURN  # about z, from the first span on
    rise = torch.linspace(0, 1, 9).double()[:, None]
    at_end = time_functions(rise, 4) @ deformation.whole.twist
    assert math.degrees(TURN * float(at_end[-1, 2])) == pytest.approx(degrees)
    deformation.close()
    found = time_functions(rise, 4) @ deformation.whole.twist
    assert math.degrees(TURN * float(found[-1, 2])) == pytest.approx(end, abs=1e-9)
    x = torch.rand(5, 3).double()
    torch.testing.assert_close(deformation(x, rise[-1:]), x)


# ------------------------------------------------------------------------------ the whole


def test_a_rotation_is_scipys_and_has_a_gradient_at_none():
    vectors = torch.randn(50, 3, dtype=torch.float64)
    np.testing.assert_allclose(
        rotation(vectors).numpy(), Rotation.from_rotvec(vectors.numpy()).as_matrix(), atol=1e-9
    )
    assert torch.equal(rotation(torch.zeros(3)), torch.eye(3))
    about_y = torch.tensor([0, math.pi / 2, 0], dtype=torch.float64)
    expected = torch.tensor([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation(about_y), expected)
    none = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.functional.jacobian(rotation, none)  # of a turn: the cross product's
    assert isinstance(slope, torch.Tensor)
    point = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), point[None])  # e_j x point
    torch.testing.assert_close(torch.einsum("abj,b->ja", slope, point), cross)


def test_the_whole_scene_goes_on_and_back():
    whole = WholeMotion(6).double()
    torch.nn.init.normal_(whole.twist, std=0.3)
    x = torch.rand(40, 3, dtype=torch.float64) * 2 - 0.5
    for tau in torch.rand(3, 1, 1, dtype=torch.float64):
        turn, shift = (own[0] for own in whole(tau))
        torch.testing.assert_close(back(onward(x, turn, shift), turn, shift), x)
        moved = torch.einsum("ij,nj->ni", turn, x - 0.5) + 0.5 + shift
        torch.testing.assert_close(onward(x, turn, shift), moved)
        assert (moved - x).norm(dim=-1).min() > 0.01


# ------------------------------------------------------------------------------ the parts


def slow_trilinear(table, point):
    """The displacement at a point, corner by corner."""
    cells = table.shape[-1] - 1
    at = [min(max(float(v), 0.0), 1.0) * cells for v in point]
    first = [min(int(v), cells - 1) for v in at]
    value = torch.zeros(3, dtype=table.dtype)
    for corner in itertools.product((0, 1), repeat=3):
        weight = 1.0
        for v, start, side in zip(at, first, corner, strict=True):
            weight *= v - start if side else 1 - (v - start)
        x, y, z = (start + side for start, side in zip(first, corner, strict=True))
        value += weight * table[:, z, y, x]
    return value


def test_a_displacement_is_the_sum_of_its_lattices_and_splines():
    deformation = random_deformation(0.5, 0.0).double()
    x = torch.rand(12, 3, dtype=torch.float64) * 1.2 - 0.1
    tau = torch.rand(12, 1, dtype=torch.float64)
    slow = [
        sum(
            weight * slow_trilinear(lattice.nodes[k], point)
            for lattice in deformation.lattices
            for k, weight in enumerate(time_functions(moment[None], 4)[0])
        )
        for point, moment in zip(x, tau, strict=True)
    ]
    torch.testing.assert_close(deformation(x, tau), x + torch.stack(slow))


def test_runs_of_equal_times_and_times_of_each_give_the_same():
    deformation = random_deformation(0.5)
    x, moments = torch.rand(300, 3), torch.rand(100, 1)
    each = moments.repeat_interleave(3, dim=0)
    by_each = deformation(x, each)  # more than are worth a table each
    by_runs = torch.cat([deformation(x[i : i + 30], each[i : i + 30]) for i in range(0, 300, 30)])
    alone = torch.cat([deformation(x[i : i + 1], each[i : i + 1]) for i in range(300)])
    torch.testing.assert_close(by_each, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(by_runs, alone, atol=1e-6, rtol=0)
    counts = [120, 0, 180]  # as somebody who knows them says
    known = Runs(moments[:3], counts)
    torch.testing.assert_close(deformation(x, known), deformation(x, known.of_each()))
    many = Runs(moments, [3] * 100)
    torch.testing.assert_close(deformation(x, many), by_each)


def test_long_clips_are_read_off_tables_and_scattered_times_off_the_splines(monkeypatch):
    """For N points of T moments tables cost T R^3, the splines N K: the work is the lesser."""
    deformation, calls = random_deformation(cells=(1, 2)), []
    each = deformation.each

    def counted(x, tau):
        calls.append(len(x))
        return each(x, tau)

    monkeypatch.setattr(deformation, "each", counted)
    tau = torch.linspace(0, 1, 100)[:, None].repeat_interleave(30, dim=0)
    x = torch.rand(len(tau), 3)
    long_clip = deformation(x, tau)
    assert not calls
    few = slice(None, None, 30)  # one of each moment
    torch.testing.assert_close(deformation(x[few], tau[few]), long_clip[few], atol=1e-6, rtol=0)
    assert calls == [100]


def test_no_points_are_nowhere_and_a_point_that_is_no_number_stays_none():
    deformation, tau = random_deformation(), torch.full((1, 1), 0.7)
    for none in (tau, tau[:0]):  # a time of all, and one of each
        assert deformation(torch.zeros(0, 3), none).shape == (0, 3)
    x = torch.rand(3, 3)
    x[1, 2] = math.nan
    places, errors = deformation.inverse(x, tau)
    for found in (deformation(x, tau)[:, 2], places[:, 2], errors):
        assert found.isnan().tolist() == [False, True, False]
    empty, nothing = deformation.inverse(x[:0], tau)
    assert empty.shape == (0, 3) and nothing.shape == (0,)


@pytest.mark.parametrize("n", [4, 70])
def test_gradients_of_both_paths(n):
    deformation = random_deformation(0.3, cells=(1, 2), spans=2).double().requires_grad_()
    x = torch.rand(n, 3, dtype=torch.float64) * 0.4 + 0.05  # within a cell, where it is smooth
    tau = torch.rand(n, 1, dtype=torch.float64)

    def run(x, twist, *nodes):
        names = ["whole.twist", *(f"lattices.{i}.nodes" for i in range(2))]
        values = dict(zip(names, (twist, *nodes), strict=True))
        return torch.func.functional_call(deformation, values, (x, tau))[:: n // 4]

    with torch.no_grad():
        deformation.whole.twist *= 0.1  # so that no point leaves its cell
    parameters = (deformation.whole.twist, *(part.nodes for part in deformation.lattices))
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters), fast_mode=True)


# ------------------------------------------------------------------------------ the inverse


def test_a_look_up_is_what_is_read_and_its_derivative_autograds():
    table = torch.randn(3, 6, 6, 6, dtype=torch.float64)
    x = (torch.rand(200, 3, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    value, slope = look_up(table, x.detach())
    torch.testing.assert_close(value, read(table, x))
    for component in range(3):
        (expected,) = torch.autograd.grad(read(table, x)[:, component].sum(), x)
        torch.testing.assert_close(slope[:, component], expected)


@pytest.mark.parametrize("size", [0.03, 0.1])
def test_there_and_back_is_within_a_ten_thousandth(size):
    deformation = random_deformation(size, cells=(4, 8, 16))
    x = torch.rand(4000, 3) * 1.4 - 0.2  # some outside the cube
    for tau in (torch.tensor([[0.4]]), torch.ones(1, 1)):
        assert least_volume(deformation, tau) > 0.15
        there, error = deformation.inverse(x, tau)
        assert error.max() < 1e-6
        assert (deformation(there, tau) - x).norm(dim=-1).max() < 1e-6
        again, _ = deformation.inverse(deformation(x, tau), tau)
        assert (again - x).norm(dim=-1).max() < 1e-5
        assert (there - x).norm(dim=-1).max() > 0.03
    there, error = deformation.inverse(x, torch.zeros(1, 1))
    assert (there - x).abs().max() < 1e-6


def test_where_space_folds_the_error_is_said():
    deformation, tau = random_deformation(0.5), torch.ones(1, 1)
    assert least_volume(deformation, tau) < 0
    x = torch.rand(3000, 3)
    there, error = deformation.inverse(x, tau)
    torch.testing.assert_close(error, (deformation(there, tau) - x).norm(dim=-1))
    assert (error > 1e-4).any() and (error < 1e-6).float().mean() > 0.5
    assert torch.isfinite(there).all()


def test_a_flat_cell_is_no_end():
    table = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    table[0, :, :, 1] = -0.5  # the first cells' points all come from x = 0
    goal = torch.rand(50, 3, dtype=torch.float64)
    found = invert(table, goal)
    left = (found + read(table, found) - goal).norm(dim=-1)
    assert torch.isfinite(found).all() and (left < 1e-6).float().mean() > 0.9


# ------------------------------------------------------------------------------ rigidity


def table_of(motion, nodes=4) -> torch.Tensor:
    """The table [1 3 R R R] of a map of points [N 3], exact at its nodes."""
    line = torch.linspace(0, 1, nodes, dtype=torch.float64)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).flatten(0, 2)
    return (motion(points) - points).T.unflatten(1, (nodes,) * 3)[None]


def test_the_gradient_at_cells_centres_is_autograds():
    table = torch.randn(2, 3, 5, 5, 5, dtype=torch.float64)
    line = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    centres = torch.stack([x, y, z], dim=-1).flatten(0, 2).requires_grad_()
    found, at = rigidity.lattice_gradient(table), rigidity.canonical_centres(table)
    for moment, own in enumerate(table):
        moved = centres + read(own, centres)
        torch.testing.assert_close(at[moment], moved)
        for row in range(3):
            (expected,) = torch.autograd.grad(moved[:, row].sum(), centres, retain_graph=True)
            torch.testing.assert_close(found[moment, :, row], expected)


def test_a_rigid_motion_costs_nothing_and_a_stretch_what_it_should():
    turn = rotation(torch.randn(5, 3, dtype=torch.float64))
    shift = torch.randn(5, 3, dtype=torch.float64)
    for own, offset in zip(turn, shift, strict=True):
        table = table_of(lambda x, own=own, offset=offset: x @ own.T + offset)
        gradient = rigidity.lattice_gradient(table)
        torch.testing.assert_close(gradient, own.expand_as(gradient))
        assert rigidity.arap(gradient).max() < 1e-20 and not rigidity.fold(gradient).any()
    for s in (0.5, 1.3):  # F = s I: 3 (s^2 - 1)^2
        gradient = rigidity.lattice_gradient(table_of(lambda x, s=s: s * x))
        expected = torch.full_like(gradient[..., 0, 0], 3 * (s**2 - 1) ** 2)
        torch.testing.assert_close(rigidity.arap(gradient), expected)


def test_the_barrier_sets_in_before_space_is_folded():
    volumes = torch.tensor([1.0, 0.4, 0.3, 0.2, 0.0, -0.5], dtype=torch.float64)
    gradient = torch.eye(3, dtype=torch.float64).repeat(6, 1, 1)
    gradient[:, 0, 0] = volumes
    gradient = gradient @ rotation(torch.randn(6, 3, dtype=torch.float64))
    expected = (rigidity.LEAST_VOLUME - volumes).clamp(min=0).square()
    torch.testing.assert_close(rigidity.fold(gradient), expected)
    assert expected[1] == 0 and expected[3] > 0 and (expected[3:].diff() > 0).all()
