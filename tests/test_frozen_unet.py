"""UNets with their channels innermost: diffusers' own forwards are the reference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from animate124.guidance import channels_cuda
from animate124.guidance.frozen_layers import forked_norm, layer_norm
from animate124.guidance.frozen_unet import channels_innermost, differentiable, in_parts
from animate124.guidance.frozen_upsampling import doubles, prepare_doubling
from animate124.toyworld import random_priors
from diffusers import ControlNetModel, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.resnet import Upsample2D  # where older ones have it, too
from torch import nn

OF_THE_GRADIENT = ("BasicTransformerBlock", "Conv2d", "Upsample2D")
GPU = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
NETWORKS = {
    "2d": (UNet2DConditionModel, random_priors.UNET_2D, (4, 8, 6)),
    "3d": (UNet3DConditionModel, random_priors.UNET_3D, (4, 5, 8, 6)),
    "controlnet": (ControlNetModel, random_priors.CONTROLNET, (4, 8, 6)),
}


def network_and_inputs(name, **changes):
    kind, config, latents = NETWORKS[name]
    network = kind(**{**config, **changes})
    network.load_state_dict(random_priors.draw_weights(network, seed=3))
    torch.manual_seed(1)
    inputs = {
        "sample": torch.randn(2, *latents, dtype=torch.float64),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 7, random_priors.WIDTH, dtype=torch.float64),
    }
    if name == "controlnet":
        inputs["controlnet_cond"] = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    return network.double().requires_grad_(False).eval(), inputs


def outputs(network, inputs):
    result = network(**inputs, return_dict=False)
    return [*result[0], result[1]] if len(result) == 2 else [*result]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("2d", {}),
        ("2d", {"use_linear_projection": True}),
        ("2d", {"act_fn": "gelu"}),  # those resnets are left alone
        ("2d", {"resnet_time_scale_shift": "scale_shift"}),  # these too
        ("3d", {}),
        ("controlnet", {}),
    ],
)
def test_a_unet_with_its_channels_innermost_predicts_the_same(name, changes):
    network, inputs = network_and_inputs(name, **changes)
    expected = outputs(network, inputs)
    results = outputs(channels_innermost(copy.deepcopy(network)), inputs)
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one)
        assert one.abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"class_embed_type": "timestep"}, {"class_labels": torch.tensor([2.0, 5.0])}),
        ({"time_embedding_act_fn": "silu"}, {}),
    ],
)
def test_what_is_added_to_the_time_stays(changes, given):
    """Each block projects the sum then."""
    network, inputs = network_and_inputs("2d", **changes)
    expected = outputs(network, inputs | given)
    changed = channels_innermost(copy.deepcopy(network))
    torch.testing.assert_close(outputs(changed, inputs | given), expected)
    assert not hasattr(changed.mid_block.resnets[0], "time_part")


def checkpoint(network):
    network.enable_gradient_checkpointing()
    network.train()


def free(network):
    if not hasattr(network, "enable_freeu"):
        pytest.skip("this diffusers has no FreeU")
    network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


@pytest.mark.parametrize("enable", [checkpoint, free])
def test_ways_up_leave_what_they_do_not_do_to_diffusers(enable, monkeypatch):
    network, inputs = network_and_inputs("2d")
    kind, called = type(network.up_blocks[0]), []
    theirs = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *a, **k: called.append(1) or theirs(*a, **k))
    enable(network)
    inputs["encoder_hidden_states"].requires_grad_()
    changed, grads = channels_innermost(copy.deepcopy(network)), []
    (expected,) = outputs(network, inputs)
    called.clear()
    (found,) = outputs(changed, inputs)
    assert called
    torch.testing.assert_close(found, expected)
    for out in (found, expected):
        grads.append(torch.autograd.grad(out.sum(), inputs["encoder_hidden_states"])[0])
    torch.testing.assert_close(*grads)


def test_many_tokens_go_through_two_layers_in_parts(monkeypatch):
    """Where nobody wants a gradient."""
    layers, seen = nn.Linear(3, 5).requires_grad_(False), []
    layers.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr("animate124.guidance.frozen_unet.TOKENS", 8)
    tokens = torch.randn(5, 4, 3)
    torch.testing.assert_close(in_parts(layers, tokens), layers(tokens))
    assert in_parts(layers, tokens.requires_grad_()).requires_grad
    assert seen == [2, 2, 1, 5, 5]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_doubling_and_a_convolution_are_one(layout):
    torch.manual_seed(0)
    layer = Upsample2D(5, use_conv=True, out_channels=6).double().requires_grad_(False)
    layer.conv.to(memory_format=layout)
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    expected, grad = layer(x), torch.randn(2, 6, 8, 6, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    assert doubles(layer)
    prepare_doubling(layer)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.autograd.grad(layer(x), x, grad)[0], expected_grad)
    assert layer(x, (7, 6)).shape[2:] == (7, 6)  # a size that isn't the double


@pytest.mark.parametrize(
    "changes", [{}, {"use_linear_projection": True}, {"act_fn": "gelu"}, {"cross_attention_dim": 5}]
)
def test_a_frozen_unet_hands_on_the_gradient_of_its_text(changes):
    network, inputs = network_and_inputs("2d", **changes)
    text = inputs["encoder_hidden_states"][..., : network.config.cross_attention_dim]
    grad = torch.randn_like(inputs["sample"])
    results = []
    for unet in (network, differentiable(copy.deepcopy(network))):
        own = text.clone().requires_grad_()
        (out,) = outputs(unet, {**inputs, "encoder_hidden_states": own})
        results.append(torch.autograd.grad(out, own, grad)[0])
    torch.testing.assert_close(*results)
    assert results[0].abs().max() > 0.1
    blocks = [layer for layer in unet.modules() if type(layer).__name__ in OF_THE_GRADIENT]
    assert blocks and all("forward" in vars(layer) for layer in (unet, *blocks))


def test_every_block_gets_a_forward_of_ours():
    for name in NETWORKS:
        network = channels_innermost(network_and_inputs(name)[0])
        blocks = ("Conv2d", "ResnetBlock2D", "Transformer", "BasicTransformer")
        blocks = (*blocks, "TemporalConvLayer", "GEGLU", "UpBlock2D", "CrossAttnUpBlock2D")
        for path, layer in network.named_modules():
            ours = "forward" in vars(layer)
            named = type(layer).__name__.startswith(blocks)
            assert ours == (named or path in ("conv_norm_out", "time_embedding")), path


@GPU
@pytest.mark.parametrize("name", NETWORKS)
def test_at_half_precision_it_is_as_exact_as_diffusers(name, device):
    sizes = {"block_out_channels": [64, 320], "norm_num_groups": 32}
    network, inputs = network_and_inputs(name, **sizes)
    network = network.to(device)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    expected = outputs(network, inputs)
    half = {k: v.half() if v.is_floating_point() else v for k, v in inputs.items()}
    whole = copy.deepcopy(network).half()
    results = [outputs(one, half) for one in (whole, channels_innermost(copy.deepcopy(whole)))]
    for theirs, ours, one in zip(*results, expected, strict=True):
        assert (ours - one).norm() < 1.5 * (theirs - one).norm() + 1e-3 * one.norm()


@GPU
@pytest.mark.parametrize("channels", [320, 960, 2560])
@pytest.mark.parametrize("images", [1, 3])  # that the offset has
def test_the_cuda_norm_adds_the_offset(channels, images, device):
    x = (3 * torch.randn(3, channels, 7, 5) + 5).half().to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, *_ = torch.randn(2, channels).half().to(device)
    offset = torch.randn(images, channels).half().to(device)
    grad, results = torch.randn_like(x), []
    for dtype in (torch.float16, torch.float64):
        own, *parameters = (z.to(dtype) for z in (x, weight, bias))
        own.requires_grad_()
        if dtype == torch.float16:
            out = channels_cuda.CudaNormSilu.apply(own, *parameters, 32, 1e-5, True, offset)
        else:
            shifted = own + offset.to(dtype)[:, :, None, None]
            out = F.silu(F.group_norm(shifted, 32, *parameters, 1e-5))
        results.append((out.detach(), *torch.autograd.grad(out, own, grad.to(dtype))))
    for half, exact in zip(*results, strict=True):
        assert (half - exact).norm() < 2e-3 * exact.norm()


@GPU
@pytest.mark.parametrize("both", [True, False])
def test_the_cuda_norm_adds_the_gradient_that_its_input_has_from_elsewhere(both, device):
    norm = nn.GroupNorm(32, 320, device=device).half().requires_grad_(False)
    norm.weight.normal_()
    x = torch.randn(2, 320, 7, 5, device=device).half().requires_grad_()
    normed, same = forked_norm(norm, x)
    slopes, elsewhere = torch.randn(2, *x.shape, device=device).half()
    assert torch.equal(same, x)
    loss = (normed * slopes).sum() + ((same * elsewhere).sum() if both else 0)
    (found,) = torch.autograd.grad(loss, x)
    exact = x.detach().double().requires_grad_()
    out = F.silu(copy.deepcopy(norm).double()(exact))
    (wanted,) = torch.autograd.grad((out * slopes).sum(), exact)
    wanted = wanted + (elsewhere if both else 0)
    assert (found - wanted).norm() < 2e-3 * wanted.norm()


@GPU
def test_the_cuda_sum_and_geglu_are_theirs(device):
    x, y = torch.randn(2, 3, 320, 7, 5, device=device).half()
    bias = torch.randn(1, 320, device=device).half()
    total = channels_cuda.CudaPlus.apply(x, y, bias)
    assert total.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(total, (x.float() + y.float() + bias[..., None, None]).half())
    tokens = 3 * torch.randn(3, 77, 2 * 1280, device=device).half()
    values, gates = tokens.float().chunk(2, dim=-1)
    torch.testing.assert_close(
        channels_cuda.CudaGeglu.apply(tokens), (values * F.gelu(gates)).half()
    )


@GPU
def test_the_cuda_geglu_has_their_gradient(device):
    tokens = 3 * torch.randn(3, 77, 2 * 1280, device=device).half()
    grad, results = torch.randn(3, 77, 1280, device=device).half(), []
    for dtype in (torch.float16, torch.float64):
        own = tokens.to(dtype).requires_grad_()
        values, gates = own.chunk(2, dim=-1)
        half = dtype == torch.float16
        out = channels_cuda.CudaGeglu.apply(own) if half else values * F.gelu(gates)
        results += torch.autograd.grad(out, own, grad.to(dtype))
    ours, exact = results
    assert (ours - exact).norm() < 1e-3 * exact.norm()


@GPU
@pytest.mark.parametrize("channels", [8, 320, 640, 1280])
@pytest.mark.parametrize("adds", [False, True])
def test_the_cuda_layer_norm_is_torchs(channels, adds, device):
    layer = nn.LayerNorm(channels, device=device).half()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    layer.requires_grad_(False)
    x, added, *grads = torch.randn(4, 3, 7, channels, device=device).half()
    results = []
    for dtype in (torch.float16, torch.float64):
        given = [z.to(dtype).requires_grad_() for z in (x, added)[: 1 + adds]]
        if dtype == torch.float16:
            both = layer_norm(layer, *given)
        else:
            both = sum(given), copy.deepcopy(layer).double()(sum(given))
        of_given = torch.autograd.grad(
            [z * 1 for z in both], given, [grad.to(dtype) for grad in grads]
        )
        results.append((*both, *of_given))
    for half, exact in zip(*results, strict=True):
        assert (half - exact).norm() < 1e-3 * exact.norm()


@GPU
def test_a_sum_has_a_gradient_where_one_part_does(device):
    layer = nn.LayerNorm(320, device=device).half().requires_grad_(False)
    x, added = torch.randn(2, 3, 320, device=device).half()
    total, normed = layer_norm(layer, x, added.requires_grad_())
    (grad,) = torch.autograd.grad([total, normed], added, [torch.ones_like(x)] * 2)
    torch.testing.assert_close(grad, torch.ones_like(x))  # a norm's own is 0 for such a gradient
