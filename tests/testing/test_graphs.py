"""Every operator kind does what random graphs rely on; random graphs stay sane, print and shrink."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.testing.blocks import OPTIONS
from fxlrp.testing.graphs import CLASSES, RandomGraph, Step, graphs
from fxlrp.testing.kinds import KINDS

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def _single(kind: str, option: int = 0, seed: int = 0) -> RandomGraph:
    return RandomGraph((Step(kind, ("x", "y")[: KINDS[kind].arity], option, seed),))


def _outputs_and_gradients(graph: RandomGraph) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = {name: value.requires_grad_() for name, value in graph.inputs().items()}
    outputs = graph.module()(**inputs)
    gradients = torch.autograd.grad(outputs[:, 1].sum(), list(inputs.values()))
    return outputs, dict(zip(inputs, gradients, strict=True))


def test_there_are_at_least_forty_kinds() -> None:
    assert len(KINDS) >= 40
    assert all(kind.arity in (1, 2) for kind in KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_kind_runs_with_sane_values_and_a_gradient(kind: str) -> None:
    for option in range(OPTIONS):
        graph = _single(kind, option, seed=option)
        inputs = graph.inputs()
        value = graph.module().v1(*inputs.values())
        assert value.shape == inputs["x"].shape
        assert value.dtype == torch.float64
        assert 1e-2 < value.abs().amax() < 1e2
        outputs, gradients = _outputs_and_gradients(graph)
        assert outputs.shape == (2, CLASSES)
        assert outputs.isfinite().all()
        for name, gradient in gradients.items():
            assert gradient.isfinite().all()
            assert gradient.abs().amax() > 1e-4, f"{name} has no influence"


@pytest.mark.parametrize("kind", KINDS)
def test_kind_treats_samples_independently(kind: str) -> None:
    graph = _single(kind)
    model, inputs = graph.module(), graph.inputs(batch=3)
    alone = model(**{name: value[1:2] for name, value in inputs.items()})
    torch.testing.assert_close(model(**inputs)[1:2], alone, rtol=1e-12, atol=1e-12)


@FEW
@given(graphs(kinds=KINDS))
def test_random_graphs_stay_in_a_sane_range(graph: RandomGraph) -> None:
    outputs, gradients = _outputs_and_gradients(graph)
    assert outputs.isfinite().all()
    assert outputs.abs().amax() < 1e4
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@FEW
@given(graphs(kinds=KINDS))
def test_a_listing_can_be_pasted_back(graph: RandomGraph) -> None:
    assert eval(repr(graph)) == graph
    torch.testing.assert_close(graph.module()(**graph.inputs()), graph.module()(**graph.inputs()), rtol=0, atol=0)


@FEW
@given(graphs())
def test_every_value_is_used(graph: RandomGraph) -> None:
    used = {name for step in graph.steps for name in step.operands} | set(graph.unused)
    assert used == {*graph.input_names, *(f"v{number}" for number in range(1, len(graph.steps) + 1))}
    assert graph.exact


def test_examples_shrink_to_a_minimal_listing() -> None:
    def has_a_late_product(graph: RandomGraph) -> bool:
        return any(step.kind == "product" and step.operands[0] != step.operands[1] for step in graph.steps[1:])

    found = find(
        graphs(kinds=["scale", "product", "layer_norm"]),
        has_a_late_product,
        settings=settings(max_examples=2000),
    )
    assert found.code() == ("def forward(x):\n    v1 = scale(x)\n    v2 = product(v1, x)\n    return head(v2.mean(1))")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(InputError, match=r"'relux'.* Did you mean 'relu'"):
        graphs(kinds=["relux"])
    with pytest.raises(InputError, match="'relux'"):
        RandomGraph.parse("v1 = relux(x)")
    with pytest.raises(InputError, match="v1 = linear"):
        RandomGraph.parse("relu(x)")
