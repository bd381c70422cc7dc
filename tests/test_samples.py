"""Packed samples: which image and which time they are of."""

import pytest
import torch
from animate124.renderer import samples
from animate124.renderer.samples import Rays, Samples, even_sizes


def test_sizes_are_nearly_equal_and_not_too_large():
    assert even_sizes(10, 4) == [4, 3, 3]
    assert even_sizes(8, 4) == [4, 4] and even_sizes(3, 4) == [3] and even_sizes(3, 0) == [3]
    assert even_sizes(0, 4) == even_sizes(0, 0) == []


def test_samples_know_their_images_and_times(monkeypatch):
    ray_indices = torch.tensor([0, 0, 3, 8, 11])  # 4 rays an image: 3, 0 and 2 samples
    packed = (ray_indices, torch.zeros(5), torch.ones(5))
    taus = torch.tensor([[0.1], [0.5], [0.9]])
    still = Samples(Rays(*torch.rand(2, 12, 3), None, None, n_images=3), *packed)
    moving = Samples(Rays(*torch.rand(2, 12, 3), taus, None, n_images=3), *packed)
    assert moving.of_images() == [3, 0, 2]
    assert still.parts(3) == [(3, None), (2, None)] and still.parts(0) == [(5, None)]

    def parts_of(packed_samples, most):
        return [(size, times.flatten().tolist()) for size, times in packed_samples.parts(most)]

    def times(*values):
        return pytest.approx(values)

    known = Samples(moving.rays, *packed, counts=moving.of_images())
    ((size, runs),) = known.parts(0, by_image=False)
    ((_, each),) = moving.parts(0, by_image=False)
    assert size == 5 and torch.equal(runs.of_each(), each)
    few = [(3, times(0.1, 0.1, 0.1)), (2, times(0.9, 0.9))]
    assert parts_of(moving, 3) == few
    assert all(torch.is_tensor(own) for _, own in known.parts(3, by_image=False))
    monkeypatch.setattr(samples, "MANY_SAMPLES", 1)
    assert parts_of(moving, 2) == [(2, times(0.1)), (1, times(0.1)), (2, times(0.9))]
    assert parts_of(moving, 0) == [(3, times(0.1)), (2, times(0.9))]
