"""What must hold for any model: values, ledger, independence of samples, determinism, kernels equal to their
definitions.
"""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

import fxlrp
from fxlrp.graph.operator_classes import ADD, SUM
from fxlrp.graph.operators import in_slots, operator_of
from fxlrp.testing import KINDS, RandomGraph, check_conservation, graphs, largest_difference
from fxlrp.testing.checks import at_inputs
from fxlrp.testing.oracle import in_double
from tests.support.kernels import by_both

#: Every packaged method, read at the inputs, and those in gradients once more in relevance.
METHODS = {name: rules for name in fxlrp.rulesets() if not (rules := at_inputs(name)).compares}
METHODS |= {
    f"{name} in relevance": rules.override(message="relevance", seed="logit")
    for name, rules in METHODS.items()
    if rules.message == "gradient"
}
RULESETS = st.sampled_from(sorted(METHODS))
IN_GRADIENTS = st.sampled_from(sorted(name for name in METHODS if f"{name} in relevance" in METHODS))
CONSERVING = st.sampled_from(
    ["conservative", "conservative-residual", "attnlrp", "ali2022", "conservative in relevance"]
)


@given(graphs(), RULESETS)
@settings(max_examples=12)
def test_values_stay_and_the_ledger_closes(graph: RandomGraph, ruleset: str) -> None:
    check_conservation(graph.module(), METHODS[ruleset], graph.inputs(), target=1).raise_if_failed()


@given(graphs(kinds=list(KINDS)), CONSERVING)
@settings(max_examples=6)
def test_float32_casts_close_to_their_precision(graph: RandomGraph, ruleset: str) -> None:
    check_conservation(graph.module(), METHODS[ruleset], graph.inputs(), target=1).raise_if_failed()


@given(graphs(), RULESETS)
@settings(max_examples=8)
def test_samples_are_independent(graph: RandomGraph, ruleset: str) -> None:
    inputs = graph.inputs(batch=3)
    lrp = fxlrp.convert(graph.module(), METHODS[ruleset])
    together = lrp.attribute(inputs, target=[0, 1, 2]).inputs
    for sample in range(3):
        alone = lrp.attribute(
            {name: value[sample : sample + 1] for name, value in inputs.items()}, target=sample
        ).inputs
        expected = {name: value[sample : sample + 1] for name, value in together.items()}
        assert largest_difference(alone, expected) < 1e-9


@given(graphs(), RULESETS)
@settings(max_examples=6)
def test_two_runs_are_bit_equal(graph: RandomGraph, ruleset: str) -> None:
    first, second = (
        fxlrp.convert(graph.module(), METHODS[ruleset]).attribute(graph.inputs(), target=1, ledger=True)
        for _ in range(2)
    )
    assert first.ledger is not None
    assert second.ledger is not None
    assert all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs)
    assert [e.source for e in first.ledger.entries] == [e.source for e in second.ledger.entries]
    assert all(
        torch.equal(a.amount, b.amount) for a, b in zip(first.ledger.entries, second.ledger.entries, strict=True)
    )


@given(graphs(), CONSERVING)
@settings(max_examples=6)
def test_the_raw_path_gives_the_same(graph: RandomGraph, ruleset: str) -> None:
    inputs = {name: value.requires_grad_() for name, value in graph.inputs().items()}
    lrp = fxlrp.convert(graph.module(), METHODS[ruleset])
    expected = lrp.attribute(inputs, target=1).inputs
    explained = lrp(**inputs)[:, 1].sum()
    grads = (
        torch.autograd.grad(explained, list(inputs.values()), allow_unused=True)
        if explained.requires_grad
        else [None] * 2
    )
    for (name, x), grad in zip(inputs.items(), grads, strict=False):
        scale = x if lrp.message == "gradient" else torch.ones_like(x)
        assert torch.equal(expected[name], torch.zeros_like(x) if grad is None else (scale * grad).detach())


def cancels(lrp: fxlrp.ConvertedModel, inputs: dict[str, Tensor]) -> bool:
    """Whether some sum of values that carry relevance is 0 but for rounding though its terms are not."""
    values = in_double(lrp, lrp.conversion.captured(inputs).program, inputs)
    for node in lrp.plan.carrying:
        operator = operator_of(node)
        if operator is not None and operator.category in (ADD, SUM):
            terms = [values[n] if isinstance(n, fx.Node) else n for n in in_slots(node, operator.terms)]
            total = (
                sum(abs(t) for t in terms)
                if operator.category == ADD
                else node.target(abs(terms[0]), *node.args[1:], **node.kwargs)
            )
            if bool((values[node].abs() < 1e-12 * total).any()):
                return True
    return False


@given(graphs(), IN_GRADIENTS)
@settings(max_examples=8)
def test_twins_agree(graph: RandomGraph, ruleset: str) -> None:
    """The same method in gradients and in relevance (T4)."""
    lrp = fxlrp.convert(graph.module(), METHODS[ruleset].override(seed="logit"))
    twin = lrp.with_ruleset(METHODS[f"{ruleset} in relevance"])
    expected, found = (one.attribute(graph.inputs(), target=1) for one in (lrp, twin))
    assume(not cancels(lrp, graph.inputs()))  # a sum that is exactly 0 (x - x) has a gradient but no relevance
    assert largest_difference(found.inputs, expected.inputs) < 1e-9


@given(graphs(), IN_GRADIENTS)
@settings(max_examples=8)
def test_the_ledger_closes_where_relevance_begins_midway(graph: RandomGraph, ruleset: str) -> None:
    """One method in gradients, but relevance copied through its softmaxes and activations."""
    rules = METHODS[ruleset].override(softmax="pass_through", activation="pass_through", seed="logit")
    check_conservation(graph.module(), rules, graph.inputs(), target=1).raise_if_failed()


@given(graphs(), RULESETS)
@settings(max_examples=8)
def test_kernels_equal_their_definitions_in_random_graphs(graph: RandomGraph, ruleset: str) -> None:
    inputs = graph.inputs(batch=3)
    lrp = fxlrp.convert(graph.module(), METHODS[ruleset], example_inputs=inputs)
    (fast, relevance), (slow, expected) = by_both(lrp, inputs)
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)
    assert largest_difference(relevance, expected) < 1e-9
