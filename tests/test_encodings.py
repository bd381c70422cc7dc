"""A further encoding: a class and a row of ENCODINGS. The field asks nothing else of it."""

from dataclasses import dataclass

import pytest
import torch
from animate124.bounds import Bounded, bounded
from animate124.geometry.encoding import Encoding
from animate124.geometry.implicit_volume import ImplicitVolume
from animate124.geometry.otypes import ENCODINGS, encoding_class
from animate124.geometry.space_time_encoding import SpaceTimeEncoding
from animate124.geometry.times import is_static
from omegaconf import OmegaConf
from torch import nn


class Waves(Encoding):
    """Sines of points that a deformation moves with time."""

    @dataclass
    class Config(Bounded):
        otype: str = "Waves"
        count: int = bounded(8, 1, 64)  # of the waves

    @classmethod
    def from_config(cls, cfg):
        return cls(cfg.count)

    def __init__(self, count):
        super().__init__()
        self.n_output_dims = count
        self.frequencies = nn.Parameter(torch.randn(3, count))
        self.speed = nn.Parameter(torch.ones(3))

    def forward(self, x, times=None):
        moved = x if times is None else x + times * self.speed
        return (moved @ self.frequencies).sin()


@pytest.fixture
def waves(monkeypatch):
    monkeypatch.setitem(ENCODINGS, "Waves", Waves)
    return {"otype": "Waves", "count": 5}


def test_a_further_encoding_is_a_field_with_normals_that_learns_to_move(waves):
    field = ImplicitVolume({"pos_encoding_config": waves, "density_bias": 0.0})
    points = torch.rand(9, 3) - 0.5
    for times in (torch.rand(9, 1), torch.rand(1, 1), None):
        out = field(points, output_normal=True, times=times)
        density = field.forward_density(points, times)
        torch.testing.assert_close(out["density"], density)
        assert out["features"].shape == out["normal"].shape == (9, 3)
    at = [field.forward_density(points, torch.full((1, 1), tau)) for tau in (0.0, 0.9)]
    assert (at[0] - at[1]).abs().max() > 1e-3 and not is_static(field)
    field(points, output_normal=True, times=torch.rand(9, 1))["normal"].sum().backward()
    assert field.encoding.encoding.speed.grad.abs().sum() > 0
    assert {"encoding.encoding.frequencies", "encoding.encoding.speed"} <= field.state_dict().keys()
    assert field.ever_moved(field.state_dict(), "")


def test_a_stencil_is_the_encoding_of_points_and_neighbours():
    """What an encoding gets that has none of its own is what the hash grid's own gives."""
    grid = {"n_levels": 3, "log2_hashmap_size": 8, "base_resolution": 4}
    encoding = ImplicitVolume({"pos_encoding_config": grid}).encoding.encoding
    nn.init.normal_(encoding.encoding_time.params)
    x = torch.rand(20, 3) * 0.8 + 0.1
    for times in (torch.rand(20, 1), torch.rand(1, 1), None):
        for own, usual in zip(
            encoding.stencil(x, 0.05, times),
            Encoding.stencil(encoding, x, 0.05, times),
            strict=True,
        ):
            torch.testing.assert_close(own, usual)


def test_an_otype_that_is_none_names_those_that_are(waves):
    cfg = OmegaConf.create({"geometry": {"pos_encoding_config": {"otype": "Wave"}}})
    words = (
        r"geometry\.pos_encoding_config\.otype is .Wave., .* one of HashGridSpatialTime, .*, Waves"
    )
    with pytest.raises(ValueError, match=words):
        ImplicitVolume(cfg.geometry)
    with pytest.raises(Exception, match="n_levels"):  # another encoding's
        ImplicitVolume({"pos_encoding_config": {"otype": "Waves", "n_levels": 3}})
    with pytest.raises(ValueError, match="count is 0, but has to be between 1 and 64"):
        ImplicitVolume({"pos_encoding_config": {"otype": "Waves", "count": 0}})
    assert encoding_class({}) is SpaceTimeEncoding
