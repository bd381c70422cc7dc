"""Score distillation's maths: exact gradients, and diffusers' own scheduler as the reference."""

import pytest
import torch
from animate124.guidance import sds
from animate124.guidance.noise import DDPM, add_noise
from diffusers import DDPMScheduler

SHAPES = [(2, 4, 8, 8), (3, 4, 5, 8, 8)]  # images, clips


@pytest.fixture(scope="module")
def scheduler():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_pulls_back_exactly_the_gradient(shape):
    z, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    loss = sds.sds_loss(z, grad)
    loss.backward()
    torch.testing.assert_close(z.grad, grad / shape[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach(), 0.5 * grad.square().sum() / shape[0])


def test_loss_takes_the_gradient_for_a_constant():
    """Even one that has a graph back to the latents: the network's Jacobian is left out."""
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    grad = z.sin()
    sds.sds_loss(z, grad).backward()
    torch.testing.assert_close(z.grad, grad.detach() / 2)


def test_loss_keeps_a_gradient_that_the_latents_would_round_away():
    z, grad = torch.full((1, 4, 2, 2), 1e3, requires_grad=True), torch.full((1, 4, 2, 2), 1e-6)
    sds.sds_loss(z, grad).backward()
    torch.testing.assert_close(z.grad, grad, rtol=0, atol=0)


@pytest.mark.parametrize("start", ["cond", "uncond"])
def test_guidance_that_is_the_conditional_half(start):
    cond, uncond = torch.randn(2, 5, dtype=torch.float64)
    for scale in (0.0, 0.5, 1.0, 2.0):
        guided = sds.classifier_free_guidance(cond, uncond, scale, start)
        assert sds.is_conditional(scale, start) == torch.allclose(guided, cond)


def test_guidance_forms():
    cond, uncond = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    def guide(scale, start):
        return sds.classifier_free_guidance(cond, uncond, scale, start)

    torch.testing.assert_close(guide(1.0, "uncond"), cond)
    torch.testing.assert_close(guide(0.0, "uncond"), uncond)
    torch.testing.assert_close(guide(0.0, "cond"), cond)
    torch.testing.assert_close(guide(-1.0, "cond"), uncond)
    torch.testing.assert_close(guide(7.0, "cond"), guide(8.0, "uncond"))


@pytest.mark.parametrize(
    "name, formula",
    [
        ("sds", lambda a: 1 - a),
        ("dreamfusion", lambda a: 1 - a**0.5),
        ("fantasia3d", lambda a: a**0.5 * (1 - a)),
        ("uniform", lambda a: 1.0),
    ],
)
def test_weights(name, formula):
    alpha_bar = torch.tensor([0.0, 0.0047, 0.25, 0.9, 1.0], dtype=torch.float64)
    expected = torch.tensor([formula(a) for a in alpha_bar.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sds.WEIGHTS[name](alpha_bar), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_weighs_rows(shape):
    eps_hat, eps, weight = torch.randn(shape), torch.randn(shape), torch.rand(shape[0])
    grad = sds.sds_gradient(eps_hat, eps, weight)
    for b in range(shape[0]):
        torch.testing.assert_close(grad[b], weight[b] * (eps_hat[b] - eps[b]))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_finite_is_left_out_and_counted(shape):
    grad = torch.randn(shape)
    whole, lost = sds.finite_part(grad)
    assert torch.equal(whole, grad) and lost == 0
    grad.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    part, lost = sds.finite_part(grad)
    assert part.view(-1)[:3].tolist() == [0, 0, 0]
    assert torch.equal(part.view(-1)[3:], grad.view(-1)[3:])
    assert lost.item() == pytest.approx(3 * shape[0] / grad.numel())
    grad[-1] = float("nan")
    assert sds.finite_part(grad)[1] == 1  # a whole row


def test_distilling_a_gaussian_finds_its_mean(scheduler):
    """For data N(mean, s^2) the best denoiser is known; SDS' only fixed point is the mean."""
    generator = torch.Generator().manual_seed(0)
    mean, s = torch.randn(1, 4, 4, 4, generator=generator), 0.5
    noise = DDPM(scheduler.alphas_cumprod)
    z = torch.zeros(8, 4, 4, 4, requires_grad=True)  # each row draws its own t and noise
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        t = noise.draw(8, 0.02, 0.98, device="cpu", generator=generator)
        a = scheduler.alphas_cumprod[t]
        eps = torch.randn(z.shape, generator=generator)
        z_t = add_noise(z.detach(), eps, *noise.scales(t))
        a = sds.per_row(a, z)
        eps_hat = (1 - a).sqrt() * (z_t - a.sqrt() * mean) / (a * s**2 + 1 - a)
        optimizer.zero_grad()
        sds.sds_loss(z, sds.sds_gradient(eps_hat, eps, 1 - a.flatten())).backward()
        optimizer.step()
    torch.testing.assert_close(z.detach().mean(0, keepdim=True), mean, atol=0.1, rtol=0)
