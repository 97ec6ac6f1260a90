"""Stretches between two layers run again in the backward pass: the same relevance, and little is kept for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from benchmarks.measure import peak
from benchmarks.models import gradient_times_input
from tests.support import small_models

#: Rules in relevance, some on sums, some with sums of what arrives; rules of several numerators, in gradients.
SOME = (
    "arras2017",
    "attnlrp-relevance",
    "chefer2021-bert",
    "deeplift-rescale",
    "epsilon-alpha2-beta1",
    "excitation-backprop",
    "full-lrp",
    "pa-lrp",
    "wu-ong2020",
)


def agrees(model: str, rules: str) -> None:
    """Relevance in stretches is that of the whole graph, but for rounding: operators that are spelled out there run
    fused in stretches.
    """

    def as_a_whole(lrp: fxlrp.ConvertedModel, given: dict[str, Tensor]) -> fxlrp.Attribution:
        with small_models.without_stretches():
            return lrp.attribute(given)

    small_models.runs_alike(model, rules, as_a_whole, rtol=1e-9, atol=1e-12, logits=1e-13)


@pytest.mark.parametrize("model", ["llama", "bert", "vit"])
@pytest.mark.parametrize("rules", SOME)
def test_stretches_change_no_number(model: str, rules: str) -> None:
    agrees(model, rules)


def test_a_layer_lies_between_stretches() -> None:
    found = small_models.stretches("llama", "attnlrp-relevance")
    entering = [node.name for stretch in found for node in stretch.module.graph.nodes if node.op == "placeholder"]
    assert any("norm_weight" in name for name in entering)
    assert not any("proj_weight" in name for name in entering)
    assert len(found) == 2 * 4 + 1  # norm, attention, norm, gate of two layers; the last norm


def test_operators_run_as_fused_as_they_were_on_the_way_forward() -> None:
    found = small_models.stretches("bert", "attnlrp-relevance")
    names = [getattr(node.target, "__name__", "") for stretch in found for node in stretch.plain.graph.nodes]
    assert names.count("plain_attention") == 2
    assert names.count("layer_norm.default") == 5
    assert not any("softmax" in name or "taylor" in name for name in names)


def test_attention_is_read_the_same_in_stretches() -> None:
    lrp, given = small_models.converted("bert"), small_models.inputs("bert")
    readings = [lrp.with_ruleset(name).attribute(given).relevance for name in ("chefer2021-bert", "rollout")]
    with small_models.without_stretches():
        wanted = [lrp.with_ruleset(name).attribute(given).relevance for name in ("chefer2021-bert", "rollout")]
    for found, own in zip(readings, wanted, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-12)


def test_a_graph_of_gradients_is_left_as_it_is() -> None:
    lrp = small_models.converted("llama").with_ruleset("attnlrp")
    lrp.attribute(small_models.inputs("llama"))
    captured = lrp.conversion.last
    assert captured is not None
    _, rewritten = lrp.conversion.rewritten(captured.folded(lrp.ruleset.fold))
    assert rewritten.stretches is rewritten.module


def _deep(layers: int) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=32, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4
    )
    return transformers.BertForSequenceClassification(config).eval()


def grows(rules: str) -> float:
    """How much memory six more layers take, relative to what they take for the plain gradient."""
    x = torch.randn(1, 64, 32)
    taken = []
    for layers in (2, 8):
        model = _deep(layers)
        lrp = fxlrp.convert(model, rules)
        for _ in range(3):  # on the first inputs the graph is compared with its model
            lrp.attribute({"inputs_embeds": x})
        taken.append(
            (peak(lambda: lrp.attribute({"inputs_embeds": x})), peak(lambda: gradient_times_input(model, x)))  # noqa: B023
        )
    (few, few_plain), (many, many_plain) = taken
    return (many - few) / (many_plain - few_plain)


def test_little_is_kept_for_a_rule_in_relevance() -> None:
    # What enters layers and stretches, near what the plain gradient keeps; four times that without stretches.
    assert grows("attnlrp-relevance") < 1.5


class Dropping(nn.Module):
    """Draws random numbers behind an activation, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.first(x)), 0.5)
        return self.last(hidden * F.gelu(hidden))


def test_random_numbers_are_drawn_once() -> None:
    torch.manual_seed(0)
    lrp, x = fxlrp.convert(Dropping().eval().double(), "attnlrp-relevance"), torch.randn(2, 6, dtype=torch.float64)
    found = lrp.attribute(x, target=1, random_seed=3)
    with small_models.without_stretches():
        wanted = lrp.attribute(x, target=1, random_seed=3)
    torch.testing.assert_close(found.relevance, wanted.relevance)
    assert not torch.allclose(lrp.attribute(x, target=1, random_seed=4).relevance, wanted.relevance)


class DroppingAttention(nn.Module):
    """Attention whose weights drop out in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).split(4, -1)
        return self.last(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)).mean(1)


@pytest.mark.filterwarnings("ignore::fxlrp.errors.RetraceWarning")
def test_attention_that_draws_random_numbers_is_not_fused_again() -> None:
    torch.manual_seed(0)
    model, x = DroppingAttention().eval().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    lrp = fxlrp.convert(model, "attnlrp-relevance")
    found = lrp.attribute(x, target=1, random_seed=3)
    with small_models.without_stretches():
        wanted = lrp.attribute(x, target=1, random_seed=3)
    torch.testing.assert_close(found.relevance, wanted.relevance)
    torch.testing.assert_close(found.explained, wanted.explained)
    assert not torch.allclose(lrp.attribute(x, target=1, random_seed=4).explained, wanted.explained)


def test_relevance_of_modules_within_stretches() -> None:
    lrp, given = small_models.converted("bert").with_ruleset("attnlrp-relevance"), small_models.inputs("bert")
    paths = ["bert.encoder.layer.*.intermediate", "bert.encoder.layer.*.attention.self"]
    found = lrp.attribute(given, at=paths)
    with small_models.without_stretches():
        wanted = lrp.attribute(given, at=paths)
    assert len(wanted.at) == 4
    for path, value in wanted.at.items():
        torch.testing.assert_close(found.at[path], value, rtol=1e-9, atol=1e-12)


def test_messages_of_many_tokens_go_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lrp = fxlrp.convert(small_models.grouped_llama().double(), "attnlrp-relevance")
    ids, passes = torch.zeros(1, 3, dtype=torch.long), []
    original = torch.autograd.grad

    def counted(*given: Any, **options: Any) -> Any:
        passes.append(given)
        return original(*given, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    numbers = []
    for count in (2, 8):
        passes.clear()
        lrp.attribute_generation({"input_ids": ids}, generated=torch.ones(1, count, dtype=torch.long))
        numbers.append(len(passes))
    assert numbers[0] == numbers[1]
