"""A network whose weights wait in the host's memory: the same one with them is the reference."""

import copy

import pytest
import torch
from animate124.guidance.frozen_unet import channels_innermost
from animate124.guidance.speed import Recorded
from animate124.guidance.waiting_weights import parts_of, wait_in_host

from test_frozen_unet import NETWORKS, network_and_inputs, outputs


@pytest.mark.parametrize("prepare", [lambda network: network, channels_innermost])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_the_same_and_its_weights_are_back_afterwards(name, prepare):
    network, inputs = network_and_inputs(name)
    waiting = prepare(copy.deepcopy(network))
    wait_in_host(waiting, torch.device("cpu"))
    places = {k: v.data_ptr() for k, v in waiting.named_parameters()}
    for _ in range(2):
        for result, one in zip(outputs(waiting, inputs), outputs(network, inputs), strict=True):
            torch.testing.assert_close(result, one)
    assert {k: v.data_ptr() for k, v in waiting.named_parameters()} == places


def test_a_part_computes_with_a_copy_and_keeps_its_pieces_together():
    """Weights that are one piece stay so: q, k and v of our attention."""
    network = channels_innermost(network_and_inputs("2d")[0])
    (attn,) = [m for m in network.mid_block.modules() if hasattr(m, "joined_weight")][:1]
    before, seen = attn.to_k.weight.clone(), []
    wait_in_host(network, torch.device("cpu"))
    there = attn.to_k.weight.data_ptr()
    attn.register_forward_pre_hook(
        lambda *_: seen.append((attn.to_k.weight.data_ptr(), attn.joined_weight.data_ptr()))
    )
    outputs(network, network_and_inputs("2d")[1])
    ((weight, joined),) = seen
    assert weight != there and weight - joined == there - attn.joined_weight.data_ptr() > 0
    torch.testing.assert_close(attn.to_k.weight, before, rtol=0, atol=0)
    in_parts = {t.data_ptr() for part in parts_of(network) for t in part.parameters()}
    assert in_parts == {t.data_ptr() for t in network.parameters()}


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_recording_brings_the_weights_along(device):
    network, inputs = network_and_inputs("2d", block_out_channels=(256, 256))
    network = channels_innermost(network.half().to(device))
    inputs = {k: v.to(device) for k, v in inputs.items()}
    inputs = {k: v.half() if v.is_floating_point() else v for k, v in inputs.items()}
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    with torch.no_grad():
        expected = network(**inputs, return_dict=False)[0]
    before = torch.cuda.memory_allocated()
    wait_in_host(network, torch.device(device))
    assert before - torch.cuda.memory_allocated() > 0.9 * size > 1e6
    assert all(p.device.type == "cpu" for p in network.parameters())
    pool = torch.cuda.graph_pool_handle()
    recorded = Recorded(lambda given: network(**given, return_dict=False)[0], "it", pool)
    for _ in range(3):
        torch.testing.assert_close(recorded(inputs), expected, rtol=1e-2, atol=1e-2)
