import pytest
import torch
from animate124.geometry.frame_table import frame_spec, frame_table_torch
from animate124.geometry.hash_grid_torch import GridSpec, hash_grid_torch

SETTINGS = {
    # levels dense in 3D and 4D, in 3D alone, and hashed; with wrap-around (an integer scale) too
    "small": {
        "n_levels": 4,
        "log2_hashmap_size": 10,
        "base_resolution": 5,
        "per_level_scale": 1.4,
    },
    "toy": {"n_levels": 8, "log2_hashmap_size": 14},
    "three features": {"n_levels": 2, "n_features_per_level": 3, "log2_hashmap_size": 7},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("tau", (0.0, 0.37, 0.5, 1.0, 1.5))
def test_a_frames_table_is_the_field_of_that_frame(settings, tau):
    """The same features and the same gradients as H3(x) + H4(x, tau)."""
    space, time = (GridSpec(dims, **SETTINGS[settings]) for dims in (3, 4))
    tables = [
        torch.randn(spec.n_params, dtype=torch.float64, requires_grad=True)
        for spec in (space, time)
    ]
    x = torch.rand(60, 3, dtype=torch.float64)
    x[:20, 0], x[10:30, 1], x[15:45, 2] = 0.0, 1.0, 1.0
    tau = torch.tensor([[tau]], dtype=torch.float64)
    of_frame = hash_grid_torch(x, frame_table_torch(*tables, tau, space, time), frame_spec(space))
    at_tau = torch.cat([x, tau.clamp(0, 1).expand(60, 1)], dim=-1)
    direct = hash_grid_torch(x, tables[0], space) + hash_grid_torch(at_tau, tables[1], time)
    torch.testing.assert_close(of_frame, direct)
    weights = torch.randn_like(direct)
    for grad, expected in zip(
        torch.autograd.grad(of_frame, tables, weights),
        torch.autograd.grad(direct, tables, weights),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected)


def test_a_frames_levels_are_those_of_space_with_one_more_line_where_dense():
    space = GridSpec(3)
    for level, of_space in zip(frame_spec(space).levels, space.levels, strict=True):
        assert (level.scale, level.hashed) == (of_space.scale, of_space.hashed)
        if level.hashed:
            assert level.size == of_space.size
        else:
            side = of_space.multipliers[1] + 1
            assert level.multipliers == (1, side, side**2)
            assert 0 <= level.size - side**3 < 8
    assert frame_spec(space) != space
