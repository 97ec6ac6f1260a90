"""`realistic` draws what it says."""

from __future__ import annotations

import torch
from torch import nn

from fxlrp.testing.weights import realistic


def test_scales() -> None:
    model = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300), nn.BatchNorm1d(300), nn.Embedding(90, 64))
    linear, norm, batch_norm, embedding = realistic(model.double())
    assert abs(linear.weight.std() * 20 - 1) < 0.05
    assert abs(linear.bias.std() - 0.2) < 0.05
    assert abs(norm.weight.mean() - 1) < 0.1
    assert abs(norm.weight.std() - 0.3) < 0.05
    assert abs(embedding.weight.std() - 0.7) < 0.05
    assert batch_norm.running_var.min() > 0.5
    assert batch_norm.running_mean.std() > 0.1


def test_equal_seeds_give_equal_weights_even_the_second_time() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double()
    first = {name: value.clone() for name, value in realistic(model, 3).state_dict().items()}
    again = realistic(model, 3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], realistic(model, 4).state_dict()["0.weight"])
