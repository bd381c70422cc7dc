"""A loss that takes its gradient at once: the same loss with its graph is the reference."""

import gc
import weakref

import threestudio
import torch
from animate124.guidance import sds
from animate124.guidance.at_once import differentiated

from guidance_table import FixedPrompt, cameras


def loss_of(seen):
    return (seen**3).sum() + seen.sin().sum()


def test_it_has_the_losss_value_and_gradient_whatever_weighs_it():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    pictures = 2 * x
    expected = loss_of(pictures)
    (wanted,) = torch.autograd.grad(-7 * expected, x, retain_graph=True)
    seen = pictures.detach().requires_grad_()
    loss = differentiated(loss_of(seen), seen, pictures)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(-7 * loss, x)[0], wanted)


def test_without_a_gradient_it_is_the_loss():
    pictures = torch.randn(3)
    loss = loss_of(pictures)
    assert differentiated(loss, pictures, pictures) is loss


def test_a_guidance_leaves_no_graph_of_its_vae_behind(random_priors):
    """And its gradient is score distillation's, through all of the VAE."""
    model = str(random_priors / "sd")
    kind = threestudio.find("animate124-image-guidance")
    prior = kind({"pretrained_model_name_or_path": model, "size": 64})
    rgb = torch.rand(2, 20, 20, 3, requires_grad=True)
    kept = weakref.WeakSet()

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    counts = []
    to_latents = prior.to_latents
    prior.to_latents = lambda seen: (to_latents(seen), counts.append(len(kept)))[0]
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor):
        out = prior(rgb, FixedPrompt(), **cameras(2))
    del prior.to_latents
    gc.collect()
    assert counts[0] > 30 and len(kept) < 5
    out["loss_sds"].backward()
    torch.manual_seed(3)
    again = rgb.detach().requires_grad_()
    pictures, condition = prior.prepare(again.permute(0, 3, 1, 2), FixedPrompt(), cameras(2))
    z = prior.to_latents(pictures)
    t = prior.noise.draw(len(z), prior.low, prior.high, device=z.device)
    alpha, sigma = prior.noise.scales(t)
    eps = torch.randn_like(z)
    z_t = alpha[:, None, None, None] * z.detach() + sigma[:, None, None, None] * eps
    with torch.no_grad():
        eps_hat = prior.guided_noise(z_t, t, condition)
    weight = sds.WEIGHTS["dreamfusion"](alpha**2)
    z.backward(sds.sds_gradient(eps_hat, eps, weight) / len(z))
    torch.testing.assert_close(rgb.grad, again.grad, rtol=1e-4, atol=1e-6)
