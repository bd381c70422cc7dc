"""D's CUDA kernels against its definition in float64."""

import pytest
import torch
from animate124.geometry import deformation_cuda
from animate124.geometry.deformation import Deformation, moved_back, rotation

COUNTS = {"one": [1000], "several": [513, 1, 255, 2048], "one point": [1], "none": [0]}


@pytest.mark.gpu
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("nodes", [2, 5, 33])
def test_the_kernels_are_the_definition(counts, nodes):
    moments = len(counts)
    x = torch.rand(sum(counts), 3, device="cuda") * 1.6 - 0.3  # some outside, where D ends
    turn = rotation(torch.randn(moments, 3, device="cuda"))
    motion = turn, 0.3 * torch.randn(moments, 3, device="cuda")
    table = 0.2 * torch.randn(moments, 3, nodes, nodes, nodes, device="cuda")
    grad = torch.randn(len(x), 3, device="cuda")
    grad[::7] = 0
    found = [value.clone().requires_grad_() for value in (*motion, table)]
    out = deformation_cuda.moved_back(x, counts, *found)
    exact = [value.double().requires_grad_() for value in (*motion, table)]
    expected = moved_back(x.double(), counts, *exact)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    got = torch.autograd.grad(out, found, grad)
    for own, other in zip(got, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (own.double() - other).norm() <= 1e-3 * max(float(other.norm()), 1e-6)


def test_the_kernels_write_to_memory_in_order_whatever_order_comes(monkeypatch):
    given = []
    monkeypatch.setattr(deformation_cuda, "run", lambda name, *args: given.append(args[2:]))
    turn, shift = rotation(torch.randn(1, 3)), torch.randn(1, 3)
    table = torch.randn(1, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    out = deformation_cuda.moved_back(torch.rand(3, 10).T, [10], turn, shift, table)
    out.backward(torch.ones(3, 10).T)
    (x, _, _, made), (_, _, _, grad, *grads) = given
    assert all(values.is_contiguous() for values in (x, made, grad, *grads))


class OnGPU(torch.Tensor):
    """One that says so."""

    device, is_cuda = torch.device("cuda:0"), True


def test_lattices_on_another_device_than_the_points_are_left_to_torch_which_says_so(monkeypatch):
    monkeypatch.setattr(deformation_cuda.cuda_program, "is_usable", lambda device: True)
    here, there = torch.rand(1, 3), torch.rand(1, 3).as_subclass(OnGPU)
    assert deformation_cuda.fits(there, there)
    assert not deformation_cuda.fits(there, here) and not deformation_cuda.fits(here, there)


@pytest.mark.gpu
def test_a_deformation_goes_through_them_and_stays_itself_at_the_start(monkeypatch):
    deformation = Deformation([2, 4], 4).cuda()
    torch.nn.init.normal_(deformation.whole.twist, std=0.3)
    x, tau = torch.rand(5000, 3, device="cuda"), torch.rand(5, 1, device="cuda")
    each = tau.repeat_interleave(1000, dim=0)
    launched = []
    run = deformation_cuda.run
    monkeypatch.setattr(deformation_cuda, "run", lambda *a: (launched.append(a[0]), run(*a)))
    found = deformation(x, each)
    found.sum().backward()
    assert launched == ["forward", "backward"]
    assert torch.equal(deformation(x, torch.zeros(1, 1, device="cuda")), x)
    deformation.fast = False
    torch.testing.assert_close(found, deformation(x, each), atol=1e-5, rtol=0)
    assert len(launched) == 3
