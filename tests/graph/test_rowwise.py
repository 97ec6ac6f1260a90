"""Where rows are mixed for the last time: the dominator of all mixings, against a search that tries every value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx

from fxlrp.capture.code import capture_code
from fxlrp.graph.rowwise import keeps_rows, last_mixed


def _mixed(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.transpose(1, 2), -1) @ x


def _twice(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.linear(torch.relu(_mixed(x)) + 1, w)


def _branches(x: Tensor, w: Tensor) -> Tensor:
    y = _mixed(x)
    return torch.tanh(y) * torch.sigmoid(torch.nn.functional.linear(y, w))


def _unjoined(x: Tensor, _: Tensor) -> Tensor:
    return _mixed(x) + _mixed(torch.neg(x))


def _solved(x: Tensor, _: Tensor) -> Tensor:
    return torch.relu(torch.linalg.solve_triangular(x @ x.transpose(1, 2), x, upper=False))


def _late(x: Tensor, _: Tensor) -> Tensor:
    return torch.relu(_mixed(x)).cumsum(1)


def _captured(function: Callable[..., Tensor]) -> tuple[fx.Graph, frozenset[fx.Node], fx.Node]:
    examples = zip(inspect.signature(function).parameters, (torch.rand(2, 3, 4), torch.rand(4, 4)), strict=True)
    graph = capture_code(function, dict(examples))
    carrying = {next(iter(graph.nodes))}
    for node in graph.nodes:
        if any(n in carrying for n in node.all_input_nodes) and node.op == "call_function":
            carrying.add(node)
    logits = graph.output_node().args[0]
    assert isinstance(logits, fx.Node)
    return graph, frozenset(carrying), logits


def _by_trying(carrying: frozenset[fx.Node], logits: fx.Node) -> fx.Node | None:
    """The earliest value without which no mixing, and no input, is met from the logits."""

    def met(barred: fx.Node) -> bool:
        stack = [logits]
        while stack:
            node = stack.pop()
            if node is barred:
                continue
            if not keeps_rows(node, carrying):
                return True
            stack.extend(n for n in node.all_input_nodes if n in carrying)
        return False

    order = [node for node in logits.graph.nodes if node in carrying and node is not logits]
    return next((node for node in order if node.meta["val"].ndim == 3 and not met(node)), None)


@pytest.mark.parametrize(
    ("function", "found"),
    [(_twice, "matmul"), (_branches, "matmul"), (_unjoined, None), (_solved, "solve"), (_late, None)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_last_mixing_is_the_dominator_of_all(function: object, found: str | None) -> None:
    _, carrying, logits = _captured(function)
    node = last_mixed(logits, carrying)
    assert node is _by_trying(carrying, logits)
    assert (node is None) if found is None else (node is not None and found in node.name)


def test_a_node_that_is_passed_counts_as_mixing() -> None:
    _, carrying, logits = _captured(_twice)
    relu = next(node for node in carrying if "relu" in node.name)
    assert last_mixed(logits, carrying, {relu}) is relu


def test_a_chain_of_thousands_is_no_trouble() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    node.meta["val"] = torch.empty(2, 3, 4)
    for _ in range(5000):
        node = graph.call_function(torch.ops.aten.relu.default, (node,))
        node.meta["val"] = torch.empty(2, 3, 4)
    graph.output(node)
    nodes = list(graph.nodes)
    assert last_mixed(node, nodes[:-1]) is nodes[0]
    assert all(b in a.users for a, b in pairwise(nodes))
