"""tracks.npz, read back by numpy."""

import dataclasses

import numpy as np
import pytest
from animate124.exporter.tracks_file import write_tracks

from moving_meshes import bending_tube


@pytest.mark.parametrize("texture", [True, False])
def test_tracks_are_all_that_a_reader_needs(tmp_path, texture):
    mesh = dataclasses.replace(bending_tube(texture=texture)[0], taus=np.linspace(0, 1, 7) ** 2)
    write_tracks(tmp_path / "tracks.npz", mesh, 14.0)
    with np.load(tmp_path / "tracks.npz", allow_pickle=False) as held:
        arrays = dict(held)
    more = ["texture", "uv"] if texture else []
    assert sorted(arrays) == sorted(["points", "colours", "faces", "taus", "times", *more])
    np.testing.assert_array_equal(arrays["points"], mesh.places)
    np.testing.assert_array_equal(arrays["colours"], mesh.colours)
    np.testing.assert_array_equal(arrays["faces"], mesh.faces)
    np.testing.assert_array_equal(arrays["taus"], mesh.taus)
    np.testing.assert_allclose(arrays["times"], [0, 1 / 14, 2 / 14, 3 / 14, 4 / 14, 5 / 14, 6 / 14])
    assert arrays["points"].dtype == np.float32 and arrays["faces"].dtype == np.int32
    if texture:
        np.testing.assert_array_equal(arrays["uv"], mesh.uv)
        np.testing.assert_array_equal(arrays["texture"], mesh.texture)
