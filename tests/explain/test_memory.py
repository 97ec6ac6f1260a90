"""How much memory an explanation takes is told before anything runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxlrp
from benchmarks.measure import peak
from fxlrp.explain.memory import in_units

CLASSES = 8192


def _llama(layers: int) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=CLASSES,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def ids(length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(1, length, dtype=torch.long)}


def test_nothing_runs_at_the_length_that_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _llama(2)
    lrp = fxlrp.convert(model, "attnlrp")
    lrp.attribute(ids(8))
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: pytest.fail("the model runs"))
    short, long = lrp.memory(ids(64)), lrp.memory(ids(1024))
    assert lrp.captures == 1
    weights = sum(weight.nbytes for weight in {*model.parameters(), *model.buffers()})
    assert short.weights == long.weights == weights
    assert (short.scores, long.scores) == (64 * CLASSES * 4, 1024 * CLASSES * 4)
    assert 14 < long.values / short.values < 18  # fused attention keeps no products of tokens with tokens


@pytest.mark.parametrize("given", ["ids", "embeddings", "ids of a model without gradients"])
def test_the_estimate_is_near_what_is_measured(given: str) -> None:
    model = _llama(4).requires_grad_(given == "ids")
    inputs = {"inputs_embeds": torch.randn(1, 256, 32)} if given == "embeddings" else ids(256)
    lrp = fxlrp.convert(model, "attnlrp")
    for _ in range(3):  # on the first inputs the graph is compared with its model
        lrp.attribute(inputs, outputs=False, target=1)
    told = lrp.memory(inputs)
    for how, expected in ((None, told.values), ("blocks", told.in_blocks)):
        measured = peak(partial(lrp.attribute, inputs, outputs=False, target=1, checkpoint=how))
        assert measured / 2 < expected < measured * 1.5


def test_a_ruleset_that_compares_holds_both_runs() -> None:
    plain = fxlrp.convert(_llama(2), "attnlrp")
    comparing = plain.with_ruleset("deeplift-rescale")
    assert comparing.memory(ids(32)).values > plain.memory(ids(32)).values


def test_a_model_in_half_precision_is_held_twice() -> None:
    model = _llama(2)
    whole = fxlrp.convert(model, "attnlrp").memory(ids(32)).weights
    half = fxlrp.convert(model.half(), "attnlrp").memory(ids(32)).weights
    assert 1.45 * whole < half < 2.1 * whole  # the table of the embedding is handed to the graph twice


def test_sizes_that_follow_from_values_are_not_guessed() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[x[:, 0] > 0]).sum(0, keepdim=True) + self.layer(x)

    lrp = fxlrp.convert(Kept().eval(), "epsilon")
    with pytest.raises(fxlrp.InputError, match="follow from the values"):
        lrp.memory(torch.tensor([[1.0, 2, 3, 4], [-1, 2, 3, 4]]))


def test_units() -> None:
    assert [in_units(size) for size in (3, 2048, 5 * 2**20, 3 * 2**29)] == ["3 B", "2 KiB", "5 MiB", "1.5 GiB"]
