"""Patterns and rules that are registered late, after a model was captured, or again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import RulesetError
from fxlrp.patterns import PATTERNS, chain, either, part, pattern
from fxlrp.rules import Cite, Conserves, rule
from tests.patterns.test_language import (
    Code,
    Three,
    converted,
    count,
    looked_for,
    squared_relu_attention,
    tokens,
)

pytestmark = pytest.mark.usefixtures("tables_restored")


def test_adding_a_pattern_is_one_function() -> None:
    @pattern("own", q=(2, 4, 3), k=(2, 4, 3), v=(2, 4, 3))
    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """relu(scale q k^T)^2 v."""
        scores = q @ k.mT
        weights = part(F.relu(either(scores, chain(scores, adding=False))).pow(2), "weights")
        return part(weights @ v, "output")

    code: Code = lambda q, k, v: F.relu(q @ k.mT / math.sqrt(8)).square() @ v  # noqa: E731
    lrp = converted(code, {"match": "own.weights", "rule": "constant"})
    assert [(row.pattern, row.rule, row.count) for row in lrp.plan.rows] == [("own.weights", "constant", 1)]
    x = tokens()
    x.requires_grad_()
    assert isinstance(lrp.model, Three)
    q, k, v = (each(x) for each in lrp.model.maps)
    weights = F.relu(q @ k.mT / math.sqrt(8)).square().detach()
    (gradient,) = torch.autograd.grad((weights @ v).sum(1)[:, 1].sum(), x)
    assert torch.allclose(lrp.attribute(tokens(), target=1).relevance, gradient * tokens())


def test_a_pattern_registered_after_a_capture_is_seen() -> None:
    lrp = fxlrp.convert(Three(squared_relu_attention_plain).double().eval(), "gradient", example_inputs=tokens())
    before = lrp.attribute(tokens(), target=1).relevance
    looked_for(squared_relu_attention)
    assert count(lrp.plan) == 1
    lines = [{"match": "own.output", "rule": "constant"}]
    other = lrp.with_ruleset({"name": "own", "extends": "gradient", "rules": lines})
    assert {row.pattern for row in other.plan.rows} == {"own.output"}
    assert torch.equal(other.attribute(tokens(), target=1).relevance, torch.zeros_like(before))
    assert torch.equal(lrp.attribute(tokens(), target=1).relevance, before)
    assert lrp.captures == other.captures == 1


def squared_relu_attention_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q @ k.mT).square() @ v


def test_an_activation_registered_after_a_capture_is_folded() -> None:
    code: Code = lambda q, k, v: q * torch.sigmoid(2.0 * q)  # noqa: E731
    lrp = fxlrp.convert(Three(code).double().eval(), "conservative", example_inputs=tokens())
    assert {row.pattern for row in lrp.plan.rows} == {"activation", "product"}  # a sigmoid, and a gate's product
    pattern("activation", slope=lambda x: torch.sigmoid(2 * x), x=(2, 3))(lambda x: x * torch.sigmoid(2.0 * x))
    assert [(row.pattern, row.rule) for row in lrp.plan.rows] == [("activation", "secant")]
    assert lrp.captures == 1


def test_a_pattern_registered_twice_is_replaced_with_a_word() -> None:
    def own(x: Tensor) -> Tensor:
        return part(torch.tanh(x), "old")

    pattern("own", x=(2, 3))(own)
    lrp = converted(lambda q, k, v: torch.sinh(q), {"match": "own.old", "rule": "gradient"})
    own = lambda x: part(torch.sinh(x), "new")  # noqa: E731
    own.__name__ = "own"
    with pytest.warns(UserWarning, match="The pattern 'own' replaces the one registered before"):
        pattern("own", x=(2, 3))(own)
    assert len(PATTERNS["own"]) == 1
    with pytest.raises(RulesetError, match=r"names 'own\.old', which no longer exists.*own\.new"):
        _ = lrp.plan
    with pytest.raises(RulesetError, match=r"no operator class.* is called 'own\.old'"):
        converted(lambda q, k, v: torch.sinh(q), {"match": "own.old", "rule": "gradient"})
    other = lrp.with_ruleset({"name": "n", "extends": "gradient", "rules": [{"match": "own.new", "rule": "gradient"}]})
    assert count(other.plan) == 1


def test_a_rule_registered_twice_is_replaced_with_a_word() -> None:
    def own(op: fxlrp.rules.Operation, x: Tensor) -> Tensor:
        """g_x = 0."""
        return op(x.detach())

    registered = rule("activation", conserves=Conserves.NOTHING, source=Cite("this test"))
    registered(own)
    lrp = converted(lambda q, k, v: torch.tanh(q), {"match": "activation", "rule": "own"})
    assert not lrp.attribute(tokens(), target=0).relevance.any()

    def changed(op: fxlrp.rules.Operation, x: Tensor) -> Tensor:
        """The plain gradient."""
        return op(x)

    changed.__name__ = "own"
    with pytest.warns(UserWarning, match="The rule 'own' replaces the one registered before"):
        rule("activation", conserves=Conserves.WITH_LEAK, source=Cite("this test"))(changed)
    assert lrp.attribute(tokens(), target=0).relevance.any()
