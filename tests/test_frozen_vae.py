"""A VAE without what a frozen one doesn't need: diffusers' own VAE is the reference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from animate124.guidance import channels_cuda, frozen_vae
from animate124.guidance.codecs import ImageCodec
from animate124.guidance.frozen_vae import MatrixAttention, slim
from animate124.toyworld.random_priors import VAE, draw_weights
from diffusers import AutoencoderKL


def random_vae(dtype=torch.float64, **changes):
    vae = AutoencoderKL(**{**VAE, **changes})
    vae.load_state_dict(draw_weights(vae, seed=3))
    return vae.to(dtype).requires_grad_(False).eval()


def encode(vae, images, chunk=0):
    """Latents, the gradient of a weighted sum of them, and the bytes that its graph held."""
    images = images.clone().requires_grad_()
    weights = {p.data_ptr() for p in vae.parameters()}
    held = {}

    def count(saved):
        if saved.data_ptr() not in weights:
            held[saved.data_ptr()] = saved.numel() * saved.element_size()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        latents = ImageCodec(vae, chunk).encode(images, mode=True)
    ramp = torch.linspace(-1, 1, latents.numel()).view_as(latents).to(latents)
    (latents * ramp).sum().backward()
    return latents.detach(), images.grad, sum(held.values())


def test_a_slim_vae_has_the_latents_and_the_gradient_of_the_whole_one():
    vae, images = random_vae(), torch.rand(3, 3, 40, 64, dtype=torch.float64)
    latents, gradient, held = encode(vae, images)
    slim_latents, slim_gradient, slim_held = encode(slim(copy.deepcopy(vae)), images)
    torch.testing.assert_close(slim_latents, latents)
    torch.testing.assert_close(slim_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert slim_held < 0.5 * held


@pytest.mark.parametrize("size", [(16, 24), (20, 17), (23, 9), (31, 32)])
def test_sides_of_any_length_are_halved_as_diffusers_halves_them(size):
    vae, images = random_vae(), torch.rand(2, 3, *size, dtype=torch.float64)
    encoder = slim(copy.deepcopy(vae)).encoder
    expected, found = vae.encoder(images), encoder(images)
    assert encoder.forward.func is frozen_vae.upside_down
    torch.testing.assert_close(found, expected)


def test_an_encoder_that_halves_in_another_way_sees_upright_images():
    vae, images = random_vae(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    block = vae.encoder.down_blocks[0].downsamplers[0]
    block.padding, block.conv.padding = 1, (1, 1)
    expected = vae.encoder(images)
    torch.testing.assert_close(slim(vae).encoder(images), expected)


def test_a_slim_vae_decodes_if_it_is_to():
    vae, z = random_vae(), torch.randn(3, 4, 5, 8, dtype=torch.float64)
    expected = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    for chunk in (0, 2):
        pictures = ImageCodec(slim(copy.deepcopy(vae), decodes=True), chunk).decode(z)
        torch.testing.assert_close(pictures, expected.float())
        clip = ImageCodec(vae, chunk).decode_clips(z.transpose(0, 1)[None])
        torch.testing.assert_close(clip[0], expected.float())
    assert slim(vae).decoder is None


def test_other_activations_are_left_alone():
    vae, images = random_vae(act_fn="gelu"), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    latents, gradient, _ = encode(vae, images)
    slim_latents, slim_gradient, _ = encode(slim(copy.deepcopy(vae)), images)
    torch.testing.assert_close(slim_latents, latents)
    torch.testing.assert_close(slim_gradient, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
def test_encoding_in_chunks_is_encoding_at_once(chunk):
    """Also the random numbers of the posterior's sample."""
    vae, images = slim(random_vae(torch.float32)), torch.rand(5, 3, 16, 16)
    latents, gradient, held = encode(vae, images)
    chunk_latents, chunk_gradient, chunk_held = encode(vae, images, chunk)
    torch.testing.assert_close(chunk_latents, latents)
    torch.testing.assert_close(chunk_gradient, gradient)
    assert (chunk_held < 0.6 * held) is (chunk < 5)
    torch.manual_seed(1)
    sample = ImageCodec(vae).encode(images)
    torch.manual_seed(1)
    torch.testing.assert_close(ImageCodec(vae, chunk).encode(images), sample)


def test_large_images_are_encoded_one_after_the_other(monkeypatch):
    """And all keep their graph."""
    vae, images = slim(random_vae()), torch.rand(3, 3, 40, 64, dtype=torch.float64)
    latents, gradient, held = encode(vae, images)
    given, whole = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: (given.append(len(x)), whole(x))[1])
    monkeypatch.setattr(ImageCodec, "pixels", 2 * 40 * 64)
    in_parts = encode(vae, images)
    assert given == [2, 1]
    torch.testing.assert_close(in_parts[0], latents)
    torch.testing.assert_close(in_parts[1], gradient)
    assert in_parts[2] > 0.9 * held


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_gradients_of_any_size_come_through_a_half_precision_vae(size):
    exact, images = random_vae(torch.float32), torch.rand(1, 3, 16, 16)
    half = slim(copy.deepcopy(exact).half())
    slopes = size * torch.randn(1, 4, 2, 2)
    gradients = []
    for vae in (exact, half):
        pixels = images.clone().requires_grad_()
        latents = ImageCodec(vae).encode(pixels, mode=True)
        gradients += torch.autograd.grad(latents, pixels, slopes)
    assert (gradients[1] - gradients[0]).norm() < 2e-2 * gradients[0].norm()


@pytest.mark.parametrize("scores_at_once", [1, 12, 2**28])
def test_matrix_attention_is_attention(scores_at_once, monkeypatch):
    monkeypatch.setattr("animate124.guidance.frozen_vae.ATTENTION_SCORES", scores_at_once)
    q, k, v = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda *qkv: MatrixAttention.apply(*qkv, 0.3), (q, k, v))
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(MatrixAttention.apply(q, k, v, 0.3), expected)


@pytest.mark.parametrize("scores_at_once", [2**13, 2**28])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_half_precision_attention_keeps_small_and_large_gradients(
    size, scores_at_once, monkeypatch
):
    monkeypatch.setattr("animate124.guidance.frozen_vae.ATTENTION_SCORES", scores_at_once)
    q, k, v = (torch.randn(1, 256, 32).half() for _ in range(3))
    grad = (torch.randn(1, 256, 32) * size).half()
    gradients = []
    for dtype in (torch.float16, torch.float64):
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = MatrixAttention.apply(*inputs, 32**-0.5)
        gradients.append(torch.autograd.grad(out, inputs, grad.to(dtype)))
    for half, exact in zip(*gradients, strict=True):
        assert (half - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("channels", "groups", "side"), [(128, 32, 65), (512, 32, 9), (16, 4, 33), (320, 32, 20)]
)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_cuda_norm_is_the_norm(channels, groups, side, silu, device):
    x = (3 * torch.randn(2, channels, side, side) + 5).half().to(device)
    weight, bias = torch.randn(2, channels).half().to(device)
    grad = torch.randn_like(x)
    assert channels_cuda.fits(x, channels, groups)
    results = []
    for dtype in (torch.float16, torch.float64):
        own = x.to(dtype).requires_grad_()
        if dtype == torch.float16:
            out = channels_cuda.CudaNormSilu.apply(own, weight, bias, groups, 1e-6, silu, None)
        else:
            out = F.group_norm(own, groups, weight.to(dtype), bias.to(dtype), 1e-6)
            out = F.silu(out) if silu else out
        results.append((out.detach(), *torch.autograd.grad(out, own, grad.to(dtype))))
    for half, exact in zip(*results, strict=True):
        assert (half - exact).norm() < 2e-3 * exact.norm()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_half_precision_slim_vae_is_as_exact_as_the_whole_one(device):
    exact = random_vae(torch.float32).to(device)
    whole = copy.deepcopy(exact).half()
    images = torch.rand(2, 3, 64, 72, device=device)
    results = [encode(vae, images) for vae in (exact, whole, slim(copy.deepcopy(whole)))]
    for expected, own, slim_own in zip(*(result[:2] for result in results), strict=True):
        assert (slim_own - expected).norm() < 1.5 * (own - expected).norm() + 1e-3 * expected.norm()
