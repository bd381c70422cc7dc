"""Losses: against loops over pixels, and the laws that they stand for."""

import math

import pytest
import torch
from animate124.system import losses


def pictures(*shape, **kwargs):
    return torch.rand(*shape, **kwargs)


def test_rgb_counts_on_the_mask_only():
    rgb, reference = pictures(2, 5, 4, 3), pictures(2, 5, 4, 3)
    mask = (pictures(2, 5, 4, 1) > 0.5).float()
    total = 0.0
    for b, y, x, c in torch.ones_like(rgb).nonzero().tolist():
        if mask[b, y, x, 0]:
            total += float(rgb[b, y, x, c] - reference[b, y, x, c]) ** 2
    assert float(losses.rgb_on_mask(rgb, reference, mask)) == pytest.approx(total / rgb.numel())
    repainted = torch.where(mask.bool(), rgb, 1 - rgb)
    torch.testing.assert_close(
        losses.rgb_on_mask(rgb, reference, mask), losses.rgb_on_mask(repainted, reference, mask)
    )


def test_mask_bce_is_torchs_and_stays_finite_at_the_ends():
    opacity, mask = pictures(2, 4, 4, 1), (pictures(2, 4, 4, 1) > 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy(opacity.clamp(1e-5, 1 - 1e-5), mask)
    torch.testing.assert_close(losses.mask_bce(opacity, mask), expected)
    wrong = losses.mask_bce(1 - mask, mask)
    assert float(wrong) == pytest.approx(-math.log(1e-5), rel=1e-2)
    assert float(losses.mask_bce(mask, mask)) < 1e-4


@pytest.mark.parametrize(
    ("loss", "power"), [(losses.normal_smoothness_2d, 2), (losses.total_variation, 1)]
)
def test_neighbour_differences_against_a_loop(loss, power):
    images = pictures(2, 4, 5, 3)
    down = [
        abs(float(images[b, y + 1, x, c] - images[b, y, x, c])) ** power
        for b, y, x, c in torch.ones(2, 3, 5, 3).nonzero().tolist()
    ]
    right = [
        abs(float(images[b, y, x + 1, c] - images[b, y, x, c])) ** power
        for b, y, x, c in torch.ones(2, 4, 4, 3).nonzero().tolist()
    ]
    expected = sum(down) / len(down) + sum(right) / len(right)
    assert float(loss(images)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(torch.full((1, 4, 4, 3), 0.3))) == 0


def test_orientation_punishes_only_normals_that_look_away():
    direction = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)
    normal = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    weights = torch.tensor([[0.5], [0.2], [0.3]], requires_grad=True)
    opacity = torch.tensor([[[[1.0], [0.0]], [[0.7], [0.0]]]])  # two rays hit something
    loss = losses.orientation(weights, normal.requires_grad_(), direction, opacity)
    assert loss.item() == pytest.approx(0.2 / 2)
    loss.backward()
    assert weights.grad is None
    assert normal.grad[:, 2].tolist() == pytest.approx([0, 0.2, 0])


def test_orientation_of_an_empty_scene_is_zero():
    nothing = torch.zeros(0, 3)
    loss = losses.orientation(torch.zeros(0, 1), nothing, nothing, torch.zeros(1, 2, 2, 1))
    assert loss.item() == 0


def test_sparsity_grows_with_opacity_and_is_smooth_at_zero():
    opacity = torch.zeros(1, 2, 2, 1, requires_grad=True)
    loss = losses.sparsity(opacity)
    loss.backward()
    assert loss.item() == pytest.approx(0.1)
    assert not opacity.grad.any()
    assert losses.sparsity(torch.full((1, 2, 2, 1), 0.6)) < losses.sparsity(torch.ones(1, 2, 2, 1))


def test_opaque_pushes_every_pixel_to_its_nearer_end():
    opacity = torch.tensor([0.2, 0.5, 0.8, 1.0]).reshape(1, 2, 2, 1).requires_grad_()
    loss = losses.opaque(opacity)
    expected = torch.distributions.Bernoulli(opacity.clamp(1e-3, 1 - 1e-3)).entropy().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    signs = opacity.grad.flatten().sign().tolist()
    assert signs == [1, 0, -1, 0]  # gradient descent moves against these


def test_z_variance_reads_solid_pixels_only():
    variance = torch.tensor([1.0, 2.0, 4.0, 100.0]).reshape(1, 2, 2, 1)
    opacity = torch.tensor([0.9, 0.6, 1.0, 0.4]).reshape(1, 2, 2, 1)
    assert float(losses.z_variance(variance, opacity)) == pytest.approx(7 / 3)
    assert float(losses.z_variance(variance, torch.zeros(1, 2, 2, 1))) == 0


def test_shapes_are_checked():
    with pytest.raises(Exception, match="mask"):
        losses.rgb_on_mask(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4))
