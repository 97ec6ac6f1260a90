"""Running a part of a graph: only what is needed, values changed on the way, and none kept for longer than needed."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxlrp.graph.nodes import run


def _graph(function: Any) -> tuple[fx.Graph, dict[str, fx.Node]]:
    graph = fx.symbolic_trace(function).graph
    return graph, {node.name: node for node in graph.nodes}


def _refused(x: Tensor) -> Tensor:
    raise AssertionError("nothing needs this")


fx.wrap("_refused")


def test_only_what_is_needed_is_run() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.add(torch.mul(x, 2), _refused(y))

    graph, nodes = _graph(function)
    values = run(graph, {"x": torch.ones(2)}, [nodes["mul"]])
    assert values[nodes["mul"]].tolist() == [2.0, 2.0]
    assert set(values) == {nodes["mul"]}
    with pytest.raises(AssertionError, match="nothing needs this"):
        run(graph, {"x": torch.ones(2), "y": torch.ones(2)})


def test_all_values_are_those_of_the_function() -> None:
    graph, nodes = _graph(lambda x: torch.sub(torch.mul(x, 3), x))
    x = torch.rand(3, requires_grad=True)
    values = run(graph, {"x": x})
    assert set(values) == set(nodes.values()) - {nodes["output"]}
    assert torch.equal(values[nodes["sub"]], x * 3 - x)
    assert not values[nodes["sub"]].requires_grad


def test_a_changed_value_is_what_others_get() -> None:
    graph, nodes = _graph(lambda x: torch.add(torch.mul(x, 2), 1))
    made = run(graph, {"x": torch.ones(1)}, [nodes["add"]], lambda node, v: v * 10 if node is nodes["mul"] else v)
    assert made[nodes["add"]].tolist() == [21.0]


def test_values_are_let_go_when_nothing_needs_them() -> None:
    graph, nodes = _graph(lambda x: torch.add(torch.mul(torch.neg(x), 2), 1))
    alive: dict[str, Any] = {}
    seen: list[int] = []

    def watch(node: fx.Node, value: Tensor) -> Tensor:
        seen.append(sum(reference() is not None for reference in alive.values()))
        alive[node.name] = weakref.ref(value)
        return value

    run(graph, {"x": torch.ones(1)}, [nodes["add"]], watch)
    assert seen[-1] <= 2  # the input, which the caller holds, and what the last one is made of
    seen.clear(), alive.clear()
    run(graph, {"x": torch.ones(1)}, each=watch)
    assert seen[-1] == 3
