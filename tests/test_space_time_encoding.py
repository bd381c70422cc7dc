from dataclasses import replace

import pytest
import torch
from animate124.geometry.hash_grid import hash_grid
from animate124.geometry.hash_grid_torch import GridSpec
from animate124.geometry.space_time_encoding import HashGrid, SpaceTimeEncoding
from animate124.geometry.stencil import neighbours

SETTINGS = {"n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 4}
SPACE, TIME = GridSpec(3, **SETTINGS), GridSpec(4, **SETTINGS)


def make(static: bool) -> SpaceTimeEncoding:
    encoding = SpaceTimeEncoding(SPACE, TIME, static)
    for parameter in encoding.parameters():
        torch.nn.init.normal_(parameter)
    return encoding


def test_dynamic_encoding_is_the_sum_of_both_grids():
    encoding, x, times = make(static=False), torch.rand(20, 3), torch.rand(20, 1)
    h3 = hash_grid(x, encoding.encoding.params, SPACE)
    h4 = hash_grid(torch.cat([x, times], dim=-1), encoding.encoding_time.params, TIME)
    torch.testing.assert_close(encoding(x, times), h3 + h4)


def test_static_encoding_is_the_grid_over_space_alone():
    encoding, x = make(static=True), torch.rand(20, 3)
    expected = hash_grid(x, encoding.encoding.params, SPACE)
    torch.testing.assert_close(encoding(x, torch.rand(20, 1)), expected)
    torch.testing.assert_close(encoding(x), expected)


def test_no_times_means_tau_zero_and_other_times_differ():
    encoding, x = make(static=False), torch.rand(20, 3)
    torch.testing.assert_close(encoding(x), encoding(x, torch.zeros(20, 1)))
    assert (encoding(x) - encoding(x, torch.full((20, 1), 0.3))).abs().max() > 0.1


@pytest.mark.parametrize("static", (True, False))
def test_one_time_stands_for_all_points(static):
    encoding, x = make(static), torch.rand(20, 3)
    tau = torch.tensor([[0.3]])
    torch.testing.assert_close(encoding(x, tau), encoding(x, tau.expand(20, 1)))


def test_stencil_is_the_features_of_points_and_of_their_neighbours():
    encoding, x, times = make(static=False), torch.rand(20, 3), torch.rand(20, 1)
    own, near = encoding.stencil(x, 0.05, times)
    torch.testing.assert_close(own, encoding(x, times))
    for k, moved in enumerate(neighbours(x, 0.05).unbind(1)):
        torch.testing.assert_close(near[:, k], encoding(moved, times))


@pytest.mark.parametrize("static", (True, False))
def test_gradient_reaches_the_time_grid_only_while_dynamic(static):
    encoding = make(static)
    encoding(torch.rand(20, 3), torch.rand(20, 1)).sum().backward()
    assert encoding.encoding.params.grad.abs().sum() > 0
    assert encoding.encoding_time.params.requires_grad is not static
    assert (encoding.encoding_time.params.grad is None) is static


def test_tables_start_small_uniform_and_set_by_the_seed():
    def tables():
        torch.manual_seed(3)
        encoding = SpaceTimeEncoding(SPACE, TIME, static=False)
        return encoding.encoding.params, encoding.encoding_time.params

    for first, again in zip(tables(), tables(), strict=True):
        assert torch.equal(first, again)
        assert first.abs().max() <= 1e-4
        assert first.std().item() == pytest.approx(2e-4 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("setting", ({"n_levels": 5}, {"log2_hashmap_size": 7}))
def test_a_checkpoint_of_another_grid_says_which_setting_would_fit(setting):
    saved = HashGrid(GridSpec(4, **{**SETTINGS, **setting})).state_dict()
    ((name, value),) = setting.items()
    grid = HashGrid(TIME)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=f"{name}={value} would fit") as error:
            grid.load_state_dict(saved, strict=strict)
        assert "size mismatch" not in str(error.value)
    grid.load_state_dict(HashGrid(TIME).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        grid.load_state_dict({})


def test_unknown_backend_is_refused_before_training():
    with pytest.raises(ValueError, match="tinycudann"):
        HashGrid(SPACE, backend="tinycuda")


@pytest.mark.parametrize("static", (True, False))
def test_tables_laid_out_as_in_release_0_1_load_and_are_the_same_field(static):
    settings = {"n_levels": 3, "base_resolution": 4, "per_level_scale": 2**0.5}
    specs = GridSpec(3, **settings), GridSpec(4, **settings)
    older = [replace(spec, float64_scale=True) for spec in specs]
    assert older[0].n_params != specs[0].n_params
    saved = SpaceTimeEncoding(*older, static)
    for parameter in saved.parameters():
        torch.nn.init.normal_(parameter)
    encoding = SpaceTimeEncoding(*specs, static)
    encoding.load_state_dict(saved.state_dict())
    x, times = torch.rand(20, 3), torch.rand(20, 1)
    assert torch.equal(encoding(x, times), saved(x, times))
    assert encoding.encoding_time.params.requires_grad is not static
    fresh = SpaceTimeEncoding(*specs, static)
    encoding = SpaceTimeEncoding(*specs, static)
    encoding.load_state_dict(fresh.state_dict())
    assert encoding.encoding.spec == specs[0]
