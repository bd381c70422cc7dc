"""CUDA graphs of a function with its gradient: the function itself is the reference."""

import pytest
import torch
from animate124.guidance.speed import FEW_PIXELS, Recorded, RecordedEncoder
from animate124.system.lanes import Lanes
from torch import nn


def random_encoder():
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, padding=1)
    return nn.Sequential(first, nn.SiLU(), nn.GroupNorm(2, 8), last).requires_grad_(False)


def slopes_of(latents):
    return torch.linspace(-1, 1, latents.numel(), device=latents.device).view_as(latents)


def latents_and_gradient(function, images):
    images = images.clone().requires_grad_()
    latents = function(images)
    return latents.detach(), torch.autograd.grad(latents, images, slopes_of(latents))[0]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_recorded_encoder_has_the_encoders_latents_and_gradient(device):
    encoder = random_encoder().to(device)
    recorded = RecordedEncoder(encoder, "it")
    for n, size in [(2, 16), (2, 16), (1, 20), (2, 16)]:
        images = torch.rand(n, 3, size, size, device=device)
        for found, wanted in zip(
            latents_and_gradient(recorded, images),
            latents_and_gradient(encoder, images),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)
    assert len(recorded.recordings) == 2


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2, 1]])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_calls_that_wait_for_their_gradients_do_not_disturb_each_other(order, device):
    encoder = random_encoder().to(device)
    recorded = RecordedEncoder(encoder, "it")
    images = [torch.rand(1, 3, 16, 16, device=device).requires_grad_() for _ in range(3)]
    latents = [recorded(x) for x in images]
    for i in order:
        wanted_latents, wanted = latents_and_gradient(encoder, images[i].detach())
        slopes = slopes_of(latents[i])
        (found,) = torch.autograd.grad(latents[i], images[i], slopes, retain_graph=True)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(latents[i].detach(), wanted_latents)


def test_many_pixels_and_calls_without_a_gradient_go_to_the_function():
    encoder = random_encoder()
    recorded = RecordedEncoder(encoder, "it")
    few = torch.rand(1, 3, 16, 16)
    many = torch.rand(1, 3, 2, FEW_PIXELS // 2 + 1, requires_grad=True)
    assert torch.equal(recorded(few), encoder(few))
    with torch.no_grad():
        assert torch.equal(recorded(few.requires_grad_()), encoder(few))
    assert torch.equal(*(f(many).detach() for f in (recorded, encoder)))
    assert not recorded.recordings


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_recording_that_takes_a_gradient_has_the_functions_results(device):
    """And what it calls is not recorded for itself."""
    encoder = random_encoder().to(device)
    pool = torch.cuda.graph_pool_handle()
    inner = RecordedEncoder(encoder, "encoder")
    network = Recorded(lambda inputs: inputs["z"].sin(), "network", pool)

    def function(inputs, encode=inner, ask=network):
        with torch.enable_grad():
            images = inputs["images"].detach().requires_grad_()
            z = encode(images)
            with torch.no_grad():
                grad = ask({"z": z}) + inputs["eps"]
            loss = (z * grad).sum()
            (slopes,) = torch.autograd.grad(loss, images)
        return loss.detach(), grad, slopes

    recorded = Recorded(function, "it", pool)
    for n, size in [(2, 16), (2, 16), (1, 20), (2, 16)]:
        images = torch.rand(n, 3, size, size, device=device)
        eps = torch.randn(n, 4, size // 2, size // 2, device=device)
        inputs = {"images": images, "eps": eps}
        wanted = function(inputs, encoder, lambda inputs: inputs["z"].sin())
        torch.testing.assert_close(recorded(inputs), wanted)
    assert len(recorded.recordings) == 2
    assert not inner.recordings and not network.recordings


@pytest.mark.gpu
def test_recordings_beside_each_other_do_not_write_over_each_others_sums():
    """Sums over many numbers go through a workspace of cuBLAS's, which it has for each stream."""
    torch.manual_seed(0)
    names = "one", "other"
    lanes, deep = Lanes(names), 2**17
    factors = {
        name: {"a": torch.randn(64, deep).half().cuda(), "b": torch.randn(deep, 64).half().cuda()}
        for name in names
    }

    def product(inputs):
        return torch.stack([inputs["a"] @ inputs["b"] for _ in range(16)])

    recorded = {name: Recorded(product, name, torch.cuda.graph_pool_handle()) for name in names}

    def results(asked):
        found = {}
        for name in asked:
            with lanes.lane(name):
                found[name] = recorded[name](factors[name])
        lanes.join()
        return found

    alone = {}
    for name in names:
        alone |= results([name])
        torch.cuda.synchronize()
    for _ in range(50):
        together = results(names)
        assert all(torch.equal(together[name], alone[name]) for name in names)
