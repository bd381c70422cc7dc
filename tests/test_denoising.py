"""Denoising in steps against the differential equation that it follows, solved in closed form: of
the Gaussian N(MEAN, STD^2), (z_t - alpha MEAN) / sqrt(alpha^2 STD^2 + sigma^2) stays the same along
the way. And what the shared step makes of it.
"""

import pytest
import torch
from animate124.guidance.denoising import clean_part, denoise
from animate124.guidance.noise import RectifiedFlow, add_noise, per_row

pytest.importorskip("diffusers", minversion="0.33")  # older ones know no flows
from test_noise import FAMILIES, MEAN, STD, GaussianPrior, best_denoiser, every_family


def noisy(family, low=0.6, high=0.9, n=16):
    """z_t in float64, and its t."""
    generator = torch.Generator().manual_seed(0)
    t = family.noise.draw(n, low, high, device="cpu", generator=generator)
    t = t.double() if t.is_floating_point() else t
    z, eps = torch.randn(2, n, 4, generator=generator, dtype=torch.float64)
    return add_noise(MEAN + STD * z, eps, *family.noise.scales(t)), t


def solved(family, z_t, t):
    """Where the differential equation leads from z_t to the data."""
    alpha, sigma = (per_row(x, z_t) for x in family.noise.scales(t))
    return MEAN + STD * (z_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()


def noise_in(family):
    """eps_hat as the shared step asks for it, of a network that knows the Gaussian."""

    def predict(z_t, t):
        answer = best_denoiser(family, z_t, t)[1]
        return family.noise.noise_of(answer, z_t, t)

    return predict


@every_family
def test_one_step_is_what_the_network_takes_for_clean(family):
    z_t, t = noisy(family)
    alpha, sigma = family.noise.scales(t)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    expected = MEAN + per_row(gain, z_t) * (z_t - per_row(alpha, z_t) * MEAN)
    torch.testing.assert_close(denoise(family.noise, noise_in(family), z_t, t, 1), expected)


@every_family
def test_many_steps_are_the_differential_equation(family):
    """Euler's steps are of first order: four times as many leave a quarter of the error. A DDPM's
    sigma goes as the root of t at the data, which leaves up to half."""
    z_t, t = noisy(family)
    exact = solved(family, z_t, t)
    errors = [
        (denoise(family.noise, noise_in(family), z_t, t, steps) - exact).abs().max()
        for steps in (32, 128, 512)
    ]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1]
    assert errors[2] < 0.05


@every_family
def test_steps_go_from_t_to_the_data_by_equal_parts(family):
    z_t, _ = noisy(family, n=1)
    start, seen = family.noise.time_at(0.8), []
    t = torch.tensor([start])

    def watching(z_t, t):
        seen.append(t)
        return noise_in(family)(z_t, t)

    denoise(family.noise, watching, z_t, t, 4)
    expected = [family.noise.time_at(0.8 * share) for share in (1, 0.75, 0.5, 0.25)]
    torch.testing.assert_close(torch.cat(seen), torch.tensor(expected))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"in 0 steps.*takes 1 at least"):
        denoise(RectifiedFlow(), torch.add, torch.zeros(1), torch.zeros(1), 0)


def test_the_clean_part_is_what_noise_was_added_to():
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.8, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(clean_part(add_noise(z, eps, alpha, sigma), eps, alpha, sigma), z)


# ------------------------------------------------------------------ the shared step


def step(prior, image):
    """A call's loss, the gradient, and the target that it was made with."""
    made, target = [], prior.target
    prior.target = lambda *args: made.append(target(*args)) or made[0]
    rgb = image.clone().requires_grad_()
    said = prior(rgb)
    said["loss_fit"].backward()
    return said, rgb.grad, made[0].permute(0, 2, 3, 1)


@every_family
def test_the_loss_is_the_mean_squared_error_to_the_target(family):
    prior = GaussianPrior(family, torch.full((3, 1, 1), MEAN), denoising_steps=3)
    image = torch.rand(4, 5, 6, 3)
    said, grad, target = step(prior, image)
    assert "loss_sds" not in said and said["lost"] == 0
    error, expected = (image - target).square().mean(), 2 * (image - target) / image.numel()
    torch.testing.assert_close(said["loss_fit"].detach(), error, check_dtype=False)
    torch.testing.assert_close(grad, expected, check_dtype=False)


@every_family
def test_fitting_moves_images_to_what_the_prior_knows(family):
    mean = torch.tensor([0.3, 0.5, 0.7])[:, None, None]
    prior = GaussianPrior(family, mean, denoising_steps=8)
    prior.low = prior.high = 0.9
    image = torch.zeros(64, 4, 4, 3)
    for _ in range(8):
        image = step(prior, image)[2]
    found = image.mean((0, 1, 2)).float()
    torch.testing.assert_close(found, mean.flatten(), atol=0.05, rtol=0)


def test_a_target_serves_as_often_as_it_is_to_and_only_its_own_cameras():
    prior = GaussianPrior(
        FAMILIES["epsilon"], torch.full((3, 1, 1), MEAN), denoising_steps=2, target_uses=3
    )
    made = []
    prior.target = lambda pictures, condition: made.append(len(made)) or pictures + made[-1]

    def look(azimuth, tau=0.0, size=4):
        camera = dict.fromkeys(("elevation", "camera_distances"), torch.zeros(2))
        camera["azimuth"] = torch.tensor([azimuth, 0.0])
        camera["frame_times"] = torch.tensor([tau, tau + 0.5])
        return float(prior(torch.full((2, size, size, 3), 0.5), **camera)["loss_fit"])

    left = [look(10.0) for _ in range(4)]
    assert left == pytest.approx([0, 0, 0, 1]) and made == [0, 1]
    assert [look(azimuth) for azimuth in (20.0, 10.0, 10.0, 20.0)] == pytest.approx([4, 1, 1, 4])
    assert look(10.0) == pytest.approx(9) and made == [0, 1, 2, 3]
    assert look(10.0, tau=0.25) == pytest.approx(16), "the same camera at other times"
    assert look(10.0, size=5) == pytest.approx(25), "pictures of another size"


def test_what_is_not_finite_pulls_at_nothing():
    prior = GaussianPrior(FAMILIES["epsilon"], torch.full((3, 1, 1), MEAN), denoising_steps=2)
    to_pictures = prior.to_pictures

    def broken(z):
        pictures = to_pictures(z).clone()
        pictures[1, 0, 0] = float("nan")
        return pictures

    prior.to_pictures = broken
    said, grad, _ = step(prior, torch.rand(2, 4, 4, 3))
    assert said["lost"] == pytest.approx(4 / 48) and said["loss_fit"].isfinite()
    assert grad.isfinite().all() and not grad[1, 0, :, 0].any() and grad[0].all()
