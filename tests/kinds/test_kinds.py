"""What must hold for every kind of operator, all of it checked on one capture of each kind.

The ledger closes, the naive oracle agrees, the gradient is the derivative, also in every layout that values have in
memory, relevance is conserved over every cut, fused kernels are what they stand for, the graph serves other batches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxlrp
from benchmarks.examine import operators
from fxlrp.capture import Program
from fxlrp.graph.nodes import tensor_value
from fxlrp.testing import KINDS, RandomGraph, check_conservation, check_derivative, largest_difference, propagate
from fxlrp.testing.checks import at_inputs
from fxlrp.testing.oracle import AGREEMENT
from tests.support import kinds
from tests.support.cuts import worst_cut
from tests.support.kernels import by_both
from tests.support.kinds import BOUND, FUSED, LONG, converted, graph_of
from tests.support.layouts import calls_of, faults

RESIDUAL = at_inputs("conservative-residual")
IN_RELEVANCE = at_inputs("conservative").override(message="relevance", seed="logit")
ATTNLRP, BY_POSITIVE_PARTS = at_inputs("attnlrp"), at_inputs("chefer2021-vit")


def tried(kind: str, *rules: fxlrp.Ruleset) -> tuple[fxlrp.Ruleset, ...]:
    return rules[:1] if kind in LONG else rules


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_model_does(kind: str) -> None:
    sample = converted(kind)
    graph_computes(sample.lrp.plan.program, sample.lrp.model, sample.inputs)


@torch.no_grad()
def graph_computes(program: Program, model: nn.Module, inputs: dict[str, Tensor]) -> None:
    arguments = program.arguments(model, inputs).values()
    found = program.unpack(fx.Interpreter(nn.Module(), graph=program.graph).run(*arguments))
    torch.testing.assert_close(found, model(**inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_closes(kind: str) -> None:
    sample = converted(kind)
    for rules in tried(kind, RESIDUAL, IN_RELEVANCE, BY_POSITIVE_PARTS):
        check_conservation(sample.lrp, rules, sample.inputs, target=1).raise_if_failed()


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_agrees(kind: str) -> None:
    sample = converted(kind)
    for rules in tried(kind, RESIDUAL, ATTNLRP, BY_POSITIVE_PARTS):
        lrp = sample.under(rules)
        result = lrp.attribute(sample.inputs, target=1, ledger=rules is BY_POSITIVE_PARTS)
        difference = largest_difference(result.inputs, propagate(lrp, sample.inputs, 1))
        assert difference < (AGREEMENT if sample.exact else 1e-6), rules.name
        if result.ledger is not None:  # what inputs receive does not depend on whether it is accounted for
            returned = sum(relevance.flatten(1).sum(1) for relevance in result.inputs.values())
            difference = float((returned - result.ledger.by_kind()["input"]).abs().max())
            assert difference < 1e-6, rules.name  # its stabiliser counts where a sum is below 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_derivative_for_one_sample(kind: str) -> None:
    sample = converted(kind)
    one = {name: value[:1] for name, value in sample.inputs.items()}
    check_derivative(sample.lrp, one, target=1, directions=1).raise_if_failed()


def _a_third(kinds: list[str]) -> list[Any]:
    """Every third in a plain run, the others by ``make slow``."""
    return [kind if i % 3 == 0 else pytest.param(kind, marks=pytest.mark.slow) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("kind", _a_third([name for name in KINDS if name not in (*BOUND, *LONG)]))
def test_the_gradient_of_every_operator_is_the_same_in_every_layout(kind: str) -> None:
    """Of the operators that run under the ruleset `gradient`, among them fused ones and kernels of fxlrp."""
    sample = converted(kind)
    lrp = sample.lrp.with_ruleset("gradient").conversion
    one = {name: value[:1].clone().requires_grad_() for name, value in sample.inputs.items()}
    captured = lrp.captured(one)
    _, rewritten = lrp.rewritten(captured)
    for call in calls_of(rewritten.module, lrp.arguments(captured.program, rewritten, one)):
        assert not faults(call)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.exact and name not in LONG])
def test_relevance_is_conserved_over_cuts(kind: str) -> None:
    sample = converted(kind)
    gap, before = worst_cut(sample.under(fxlrp.ruleset("attnlrp")), sample.inputs, orders=1, most=12)
    assert gap < 1e-9, f"the cut after {sorted(before)}"


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in BOUND])
def test_one_graph_serves_other_batches(kind: str) -> None:
    sample = converted(kind)
    for size in (1, 5):
        other = graph_of(kind).inputs(batch=size, seed=1)
        expected: Tensor = sample.lrp.model(**other)
        torch.testing.assert_close(sample.lrp(**other), expected, rtol=1e-12, atol=1e-12)
    assert sample.lrp.captures == 1


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.exact])
def test_inexact_kinds_round_to_float32(kind: str) -> None:
    nodes = converted(kind).lrp.plan.program.graph.nodes
    values = [value for node in nodes if (value := tensor_value(node)) is not None]
    assert any(value.dtype == torch.float32 for value in values)
    assert not graph_of(kind).exact


@pytest.mark.parametrize("ruleset", ["attnlrp", "cp-lrp", "ali2022", "ali2022-ah", "ali2022-ln", "gradient"])
@pytest.mark.parametrize("kind", FUSED)
def test_kernels_equal_their_definitions(kind: str, ruleset: str) -> None:
    kernels_agree(converted(kind), ruleset)


def kernels_agree(sample: kinds.Sample, ruleset: str) -> None:
    inputs = graph_of(sample.kind).inputs(batch=3)
    (fast, relevance), (slow, expected) = by_both(sample.under(at_inputs(ruleset)), inputs)
    bound = 1e-11 if sample.exact else 1e-6
    torch.testing.assert_close(fast, slow, rtol=bound, atol=bound)
    assert largest_difference(relevance, expected) < bound


def test_every_operator_that_the_census_met_occurs_in_a_kind() -> None:
    text = (Path(__file__).parents[2] / "docs/coverage.md").read_text()
    met = set(re.findall(r"`(\w+)`", text.split("## Operators")[1]))
    assert len(met) > 90
    found = {"embedding"}  # of tokens, where relevance arrives: a random graph takes floats
    for kind in KINDS:
        found |= set(operators(converted(kind).lrp.plan))
    recorded = RandomGraph.parse("v1 = checked(x)\nv2 = cast_float32(v1)")  # where a cast has another name
    with pytest.warns(fxlrp.RetraceWarning):
        lrp = fxlrp.convert(recorded.module(), "conservative", example_inputs=recorded.inputs())
    found |= set(operators(lrp.plan))
    assert met <= found, f"no kind has {sorted(met - found)}"
