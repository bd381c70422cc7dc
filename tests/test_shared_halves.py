"""What both halves of guidance have in common, computed once: diffusers' networks on all rows are
the reference.
"""

import copy

import pytest
import torch
from animate124.guidance.frozen_unet import channels_innermost
from animate124.guidance.shared_halves import before_the_text, share_halves

from test_frozen_unet import NETWORKS, network_and_inputs, outputs

LAYERS = {  # before the text
    "2d": ["conv_in", "resnets.0", "attn1"],
    "3d": ["conv_in", "transformer_in", "resnets.0", "temp_convs.0", "attn1"],
    "controlnet": ["conv_in", "controlnet_cond_embedding", "resnets.0", "attn1"],
}


def guided_inputs(inputs):
    """Both halves are the same but for the text."""
    text = {"encoder_hidden_states"}
    return {k: torch.cat([x, -2 * x if k in text else x]) for k, x in inputs.items()}


@pytest.mark.parametrize("prepare", [lambda network: network, channels_innermost])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_computes_the_start_once_predicts_the_same(name, prepare):
    network, inputs = network_and_inputs(name)
    inputs = guided_inputs(inputs)
    expected = outputs(network, inputs)
    results = outputs(share_halves(prepare(copy.deepcopy(network))), inputs)
    for result, one in zip(results, expected, strict=True):
        torch.testing.assert_close(result, one)
    first, second = expected[-1].chunk(2)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_half_of_the_rows_up_to_the_text(name):
    network, inputs = network_and_inputs(name)
    inputs, rows = guided_inputs(inputs), {}
    names = {layer: path for path, layer in network.named_modules()}
    for layer in before_the_text(network):
        forward, path = layer.forward, names[layer]

        def counted(x, *args, forward=forward, path=path, **kwargs):
            rows[path] = len(x)
            return forward(x, *args, **kwargs)

        layer.forward = counted
    outputs(network, inputs)
    whole = dict(rows)
    outputs(share_halves(network), inputs)
    assert [path.rpartition("blocks.0.")[2] for path in whole] == LAYERS[name]
    assert rows == {path: n // 2 for path, n in whole.items()}
