"""The laws of rules.md that no method's own tests hold: T1 to T5, T11, T12 and T15, each by its number.

T6, T7 and T14 stand in ``test_rollout.py``, T8 in ``test_arras.py``, T9 and T16 in ``test_wu_ong.py``, T10
in ``test_experts.py``, T13 in ``test_rollout.py`` and ``test_properties.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.readout.passes import Task
from fxlrp.testing.checks import at_inputs
from tests.support.zoo import ZOO

IN_GRADIENTS = [name for name in fxlrp.rulesets() if fxlrp.ruleset(name).message == "gradient"]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def without_biases(model: nn.Module) -> nn.Module:
    """The model with every additive parameter zero, tables of positions and token types among them."""
    for name, parameter in model.named_parameters():
        if "bias" in name or "position_embeddings" in name or "token_type" in name:
            parameter.data.zero_()
    return model


@pytest.fixture(scope="module")
def bert() -> tuple[fxlrp.ConvertedModel, dict[str, Tensor]]:
    model, inputs = ZOO["bert"].build(), ZOO["bert"].inputs(length=5)
    return fxlrp.convert(model, "attnlrp", example_inputs=inputs), inputs


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_t01_the_ledger_closes(bert: Any, epsilon: float) -> None:
    lrp, inputs = bert
    rules = fxlrp.ruleset("attnlrp").override(linear={"rule": "epsilon", "epsilon": epsilon})
    ledger = lrp.with_ruleset(rules).attribute(inputs, target=1, ledger=True).ledger
    assert relative(ledger.total, ledger.explained) < 1e-9
    assert bool((ledger.by_kind()["epsilon"] == 0).all()) == (epsilon == 0)


@pytest.mark.parametrize(("name", "on"), [("ali2022", "bert"), ("libragrad", "bert"), ("mambalrp", "mamba")])
def test_t02_without_biases_the_tokens_explain_the_logit(name: str, on: str) -> None:
    model, inputs = without_biases(ZOO[on].build()), ZOO[on].inputs(length=5)
    rules = fxlrp.ruleset(name).override(activation="secant", seed="logit")
    found = fxlrp.attribute(model, inputs, ruleset=rules, target=1)
    bound = 1e-9 if on == "bert" else 1e-6  # the other casts its norms to float32
    assert relative(found.relevance.sum(1).double(), found.explained.double()) < bound


def test_t03_attnlrp_needs_the_virtual_biases_of_its_softmaxes() -> None:
    model, inputs = without_biases(ZOO["bert"].build()), ZOO["bert"].inputs(length=5)
    found = fxlrp.attribute(model, inputs, ruleset="attnlrp", target=1, ledger=True)
    assert found.ledger is not None
    sums = found.ledger.by_kind()
    total = found.relevance.sum(1) + sums["softmax expansion"] + sums["activation offset"]
    assert relative(total, found.explained) < 1e-8  # the identity rule's 1e-10 is among the offsets
    assert relative(found.relevance.sum(1), found.explained) > 1e-3


@pytest.mark.parametrize("name", IN_GRADIENTS)
def test_t04_relevance_is_the_value_times_the_gradient(bert: Any, name: str) -> None:
    lrp, inputs = bert
    rules = at_inputs(name).override(seed="logit")
    one = lrp.with_ruleset(rules).attribute(inputs, target=1, at=["bert.encoder.layer.*"])
    other = lrp.with_ruleset(rules.override(message="relevance")).attribute(
        inputs, target=1, at=["bert.encoder.layer.*"]
    )
    assert relative(other.features, one.features) < 1e-9
    assert all(relative(other.at[path], one.at[path]) < 1e-9 for path in one.at)


def attention(lrp: fxlrp.ConvertedModel, inputs: dict[str, Tensor], *parts: str) -> list[dict[str, Any]]:
    """What arrives at the labelled values of each attention, layer by layer."""
    captured = lrp.conversion.captured(inputs)
    labels = captured.structure.labels
    nodes = [n for n in captured.program.graph.nodes if "attention.weights" in labels.get(n, ())]
    outputs = [n for n in captured.program.graph.nodes if "attention.output" in labels.get(n, ())]
    values = [n.args[1] for n in outputs]
    carried = Task(lrp.conversion, lrp.conversion.prepare(inputs), 1, None).propagate([*nodes, *outputs, *values]).taps
    third = len(nodes)
    rows = zip(carried[:third], carried[third : 2 * third], carried[2 * third :], strict=True)
    return [dict(zip(("weights", "output", "values"), row, strict=True)) for row in rows]


def test_t05_each_factor_of_a_product_receives_half(bert: Any) -> None:
    lrp, inputs = bert
    layers = attention(lrp, inputs)
    assert len(layers) == 2
    for layer in layers:
        sums = {part: carried.relevance.sum((1, 2, 3)) for part, carried in layer.items()}
        assert relative(sums["weights"], sums["output"] / 2) < 1e-9
        assert relative(sums["values"], sums["output"] / 2) < 1e-9


def test_t11_constant_weights_send_nothing_to_queries_and_keys(bert: Any) -> None:
    lrp, inputs = bert
    found = lrp.attribute(inputs, target=1, at=["*.self.query", "*.self.key", "*.self.value"])
    assert all(bool(r.abs().max() > 0) for r in found.at.values())
    held = lrp.with_ruleset("ali2022")
    with pytest.raises(fxlrp.InputError, match="fits no module whose output carries relevance"):
        held.attribute(inputs, target=1, at=["*.self.query"])
    assert float(held.attribute(inputs, target=1, at=["*.self.value"]).relevance.abs().max()) > 0


@pytest.mark.parametrize("name", fxlrp.rulesets())
def test_t12_the_outputs_are_the_models_own(bert: Any, name: str) -> None:
    lrp, inputs = bert
    with torch.no_grad():
        expected = lrp.model(**inputs).logits
        assert relative(lrp.with_ruleset(name)(**inputs).logits, expected) < 1e-13


def test_t15_the_true_gradient_of_a_norm_explains_nothing() -> None:
    norm = nn.LayerNorm(6, eps=0.0, elementwise_affine=False, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    found = fxlrp.attribute(norm.eval(), x, ruleset="gradient", target=2)
    assert float(found.relevance.sum(1).abs().max()) < 1e-12 * float(found.relevance.abs().max())
