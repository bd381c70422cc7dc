"""The occupancy grid: which cells it finds, forgets and names."""

import pytest
import torch
import torch.nn.functional as F
from animate124.renderer.occupancy_grid import (
    DECAY,
    THRESHOLD,
    WARM_UP,
    OccupancyGrid,
    cell_points,
    decayed_maximum,
)
from animate124.renderer.ray_marching import occupied_box

AABB = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def ball(center, radius=0.3, alpha=1.0):
    return lambda points: alpha * ((points - center).norm(dim=-1) < radius).float()


def occupied_at(grid, points):
    """Whether the cell around each point is occupied."""
    n = grid.binaries.shape[-1]
    x, y, z = ((points + 1) / 2 * n).long().clamp(0, n - 1).unbind(-1)
    return grid.binaries[0, x, y, z]


def updated(alpha, steps, grid=None):
    grid = OccupancyGrid(AABB) if grid is None else grid
    for step in steps:
        grid.update(step, alpha)
    return grid


def test_cells_are_numbered_as_the_grid_is_indexed():
    resolution = torch.tensor([4, 5, 6], dtype=torch.int32)
    aabb = torch.tensor([-1.0, 0.0, 2.0, 1.0, 5.0, 8.0])
    cells = torch.arange(4 * 5 * 6)
    points = cell_points(cells, resolution, aabb)
    x, y, z = ((points - aabb[:3]) / (aabb[3:] - aabb[:3]) * resolution).long().unbind(-1)
    assert torch.equal(cells.view(4, 5, 6)[x, y, z], cells)


def test_points_fill_their_cells():
    points = cell_points(torch.full((4000,), 3), torch.tensor([2, 2, 2], dtype=torch.int32), AABB)
    low, high = torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])  # cell (0, 1, 1)
    assert ((points >= low) & (points <= high)).all()
    torch.testing.assert_close(points.mean(0), (low + high) / 2, atol=0.02, rtol=0)


def test_decayed_maximum_equals_a_loop():
    occs, cells = torch.rand(20), torch.randint(20, (30,))
    values = torch.rand(30) * 0.8
    expected = occs.clone()
    for cell in cells.unique():
        expected[cell] = max(occs[cell] * 0.9, values[cells == cell].max())
    torch.testing.assert_close(decayed_maximum(occs, cells, values, 0.9), expected)


@pytest.mark.parametrize("first", [0, WARM_UP])
def test_a_ball_is_found(first):
    """In the warm-up at once, later by a quarter of the cells at a time."""
    center = torch.tensor([0.2, -0.1, 0.4])
    n_updates = 1 if first == 0 else 20
    grid = updated(ball(center), range(first, first + 16 * n_updates, 16))
    points = torch.rand(20_000, 3) * 2 - 1
    distance, found = (points - center).norm(dim=-1), occupied_at(grid, points)
    diagonal = 2 / 32 * 3**0.5
    assert found[distance < 0.3 - diagonal].float().mean() > 0.98
    assert not found[distance > 0.3 + diagonal].any()


def test_what_is_gone_fades():
    """A cell of alpha 1 falls below the threshold after 90 updates, if the scene lives on."""
    stays, goes = torch.tensor([-0.5, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.0])
    centers = torch.stack([stays, goes])
    grid = updated(lambda x: torch.maximum(ball(stays, 0.4)(x), ball(goes, 0.4)(x)), [0] * 2)
    for n_updates, expected in [(80, [True, True]), (20, [True, False])]:
        updated(ball(stays, 0.4), [0] * n_updates, grid)
        assert occupied_at(grid, centers).tolist() == expected
    assert DECAY**90 < THRESHOLD < DECAY**89


def test_a_moving_ball_is_found_wherever_it_passes():
    """Each point is looked at at a time of its own, as the renderer does in a dynamic scene."""

    def alpha(points):
        tau = torch.rand(len(points), 1)
        centers = torch.cat([1.2 * tau - 0.6, torch.zeros(len(points), 2)], dim=-1)
        return ((points - centers).norm(dim=-1) < 0.25).float()

    grid = updated(alpha, range(0, 16 * 60, 16))
    tau = torch.linspace(0, 1, 11)[:, None]
    centers = torch.cat([1.2 * tau - 0.6, torch.zeros(11, 2)], dim=-1)
    around = centers[:, None] + 0.15 * F.normalize(torch.randn(11, 200, 3), dim=-1)
    assert occupied_at(grid, around.flatten(0, 1)).float().mean() > 0.995
    assert not occupied_at(grid, torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, -0.5]])).any()


def test_after_the_warm_up_a_quarter_and_the_occupied_are_visited():
    grid = updated(ball(torch.zeros(3)), [0])
    n_occupied = int(grid.binaries.sum())
    assert len(grid.cells_to_visit(0)) == 32**3
    cells = grid.cells_to_visit(WARM_UP)
    assert len(cells) == 32**3 // 4 + n_occupied
    assert grid.binaries.flatten()[cells].sum() >= n_occupied
    grid.fill()
    assert len(grid.cells_to_visit(WARM_UP)) == 2 * (32**3 // 4)


def test_the_threshold_is_one_percent_or_the_mean():
    dense = updated(ball(torch.zeros(3), radius=0.8), [0])
    assert dense.alpha_threshold() == pytest.approx(0.01)
    faint = updated(ball(torch.zeros(3), alpha=1e-3), [0])
    assert faint.alpha_threshold() == faint.occs.mean() < 1e-3
    assert faint.binaries.any()


def test_empty_space_is_empty():
    grid = updated(ball(torch.zeros(3), alpha=0.0), range(0, 400, 16))
    assert not grid.binaries.any()


def test_buffers_are_those_of_nerfaccs_estimator():
    """Names, shapes and types read off nerfacc 0.5.3's OccGridEstimator(roi_aabb, 32, levels=1)."""
    buffers = OccupancyGrid(AABB).state_dict()
    expected = {
        "resolution": ((3,), torch.int32),
        "aabbs": ((1, 6), torch.float32),
        "occs": ((32**3,), torch.float32),
        "binaries": ((1, 32, 32, 32), torch.bool),
    }
    assert {k: (tuple(v.shape), v.dtype) for k, v in buffers.items()} == expected


def test_the_same_generator_gives_the_same_grid():
    grids = [OccupancyGrid(AABB) for _ in range(2)]
    for grid in grids:
        generator = torch.Generator().manual_seed(3)
        for step in (0, WARM_UP, WARM_UP + 16):
            grid.update(step, ball(torch.zeros(3)), generator=generator)
    assert torch.equal(grids[0].occs, grids[1].occs) and grids[0].binaries.any()


def test_the_occupied_box_follows_the_cells():
    grid, other = OccupancyGrid(AABB), OccupancyGrid(AABB)
    low, high = grid.occupied_box()
    assert (low > high).all()  # nothing there
    grid.binaries[0, 3, 4, 5] = True
    expected = occupied_box(grid.binaries[0], AABB)
    torch.testing.assert_close(grid.occupied_box(), expected)
    assert grid.occupied_box() is grid.occupied_box()
    other.occupied_box()
    other.load_state_dict(grid.state_dict())
    torch.testing.assert_close(other.occupied_box(), expected)
    other.fill()
    torch.testing.assert_close(other.occupied_box(), (AABB[:3], AABB[3:]))
    with torch.inference_mode():
        other = OccupancyGrid(AABB)
        other.occupied_box()
        other.fill()
        torch.testing.assert_close(other.occupied_box(), (AABB[:3], AABB[3:]))
