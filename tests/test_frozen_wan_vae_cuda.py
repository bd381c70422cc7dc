"""The norm of Wan's VAE as CUDA kernels: torch's operations in float64 are the reference."""

import warnings

import pytest
import torch
from animate124.guidance import frozen_wan_vae, rms_norm_cuda
from animate124.guidance.frozen_wan_vae import NormSilu

# channels, frames, height, width: vectors of 8, 4, 2 and 1 channels; threads with and without more
# than others; more pixels than all blocks take at a time; one pixel
SHAPES = [
    (96, 3, 17, 13),
    (96, 2, 401, 103),
    (160, 1, 5, 7),
    (192, 5, 9, 1),
    (384, 2, 3, 5),
    (4, 1, 6, 5),
    (6, 2, 3, 3),
    (640, 1, 2, 3),
    (1023, 1, 3, 1),
    (1024, 1, 1, 1),
]
TOLERANCES = {torch.float32: 3e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def norm_and_gradient(function, x, gain, bias, grad):
    x = x.detach().requires_grad_()
    out = function.apply(x, gain, bias)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_are_the_definition(shape, dtype, innermost):
    torch.manual_seed(1)
    channels = shape[0]
    layout = torch.channels_last_3d if innermost else torch.contiguous_format
    x, grad = torch.randn(2, 2, *shape, device="cuda").to(dtype)
    x = (3 * x).contiguous(memory_format=layout)
    gain, bias = torch.randn(2, channels, 1, 1, 1, device="cuda")
    gain = gain * channels**0.5
    assert rms_norm_cuda.fits(x, gain)
    found = norm_and_gradient(rms_norm_cuda.CudaNormSilu, x, gain, bias, grad)
    wide = [value.double() for value in (x, gain, bias, grad)]
    for own, exact in zip(found, norm_and_gradient(NormSilu, *wide), strict=True):
        assert own.dtype == dtype and own.is_contiguous(memory_format=torch.channels_last_3d)
        assert (own.double() - exact).norm() < TOLERANCES[dtype] * exact.norm()
        assert (own.double() - exact).abs().max() < 4 * TOLERANCES[dtype] * exact.abs().max()


@pytest.mark.gpu
def test_pixels_without_anything_and_slices_at_odd_places():
    x = torch.randn(1, 9, 3, 5, 6, device="cuda").to(memory_format=torch.channels_last_3d)[:, :, 1:]
    x[0, :, 1, 2] = 0
    gain, bias = torch.randn(2, 9, 1, 1, 1, device="cuda")
    found = norm_and_gradient(rms_norm_cuda.CudaNormSilu, x, gain, bias, 1 + x)
    wanted = norm_and_gradient(NormSilu, x, gain, bias, 1 + x)
    for own, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_without_kernels_torch_serves_after_one_warning(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(rms_norm_cuda, "program", fail)
    x, gain = torch.randn(1, 22, 1, 2, 2, device="cuda"), torch.ones(22, 1, 1, 1, device="cuda")
    rms_norm_cuda.works.cache_clear()
    with pytest.warns(UserWarning, match="22 channels have no CUDA kernel.*no compiler"):
        assert not rms_norm_cuda.fits(x, gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rms_norm_cuda.fits(x, gain)
    rms_norm_cuda.works.cache_clear()


@pytest.mark.gpu
def test_an_encoder_goes_through_them_with_channels_innermost(monkeypatch):
    pytest.importorskip("diffusers", minversion="0.35")
    import tiny_models as tiny

    vae = tiny.wan_vae(dim_mult=(2, 4, 4, 8))
    vae = frozen_wan_vae.slim(vae.bfloat16().cuda().requires_grad_(False))
    launched, turned = [], []
    launch = rms_norm_cuda.launch

    def spy(name, x, gain, bias, *grads):
        launched.append(name)
        return launch(name, x, gain, bias, *grads)

    innermost = rms_norm_cuda.innermost

    def count(x):
        turned.append(not x.is_contiguous(memory_format=torch.channels_last_3d))
        return innermost(x)

    monkeypatch.setattr(rms_norm_cuda, "launch", spy)
    monkeypatch.setattr(rms_norm_cuda, "innermost", count)
    pixels = torch.rand(1, 5, 3, 32, 48, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
    frozen_wan_vae.moments(vae, pixels).float().square().sum().backward()
    assert launched.count("forward") == launched.count("backward") > 10
    assert not any(turned)
