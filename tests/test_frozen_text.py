"""A frozen CLIP text encoder: transformers' own is the reference."""

import copy

import pytest
import torch
from animate124.textual_inversion.frozen_text import FrozenText, is_plain, parts_of
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_its_states_and_the_gradient_of_its_embeddings_are_transformers(activation):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3}
    config = CLIPTextConfig(vocab_size=50, num_hidden_layers=3, hidden_act=activation, **sizes)
    model = CLIPTextModel(config).double().requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)  # norms and biases, too
    ids, results = torch.randint(50, (2, 77)), []
    grad = torch.randn(2, 77, 24, dtype=torch.float64)
    for plain in (True, False):
        own = copy.deepcopy(model)
        table = parts_of(own).embeddings.token_embedding.weight.requires_grad_()
        assert is_plain(own)
        states = own(ids)[0] if plain else FrozenText(own)(ids)
        results.append((states, torch.autograd.grad(states, table, grad)[0]))
        torch.testing.assert_close(own(ids)[0], results[0][0])  # the model is as it was
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_model_with_something_between_is_left_alone():
    model = CLIPTextModel(CLIPTextConfig(vocab_size=50, num_hidden_layers=1, hidden_size=64))
    assert is_plain(model)
    attention = parts_of(model).encoder.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj, nn.Linear(64, 64))
    assert not is_plain(model)
