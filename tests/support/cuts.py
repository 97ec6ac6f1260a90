"""Conservation over cuts: whatever set of values separates the inputs from the output, the same relevance
passes through it.

A cut is given by the values on its input side, closed under ancestors. Everything beyond is run again from
those values as leaves: their x * g, plus the additive constants and leaks beyond the cut, must be the
explained output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from fxlrp.engine.samples import relevance_of
from fxlrp.explain.model import ConvertedModel
from fxlrp.graph.nodes import to_networkx
from fxlrp.graph.operators import is_continuous
from fxlrp.planning.plan import Plan
from fxlrp.rewrite import Rewritten, rewrite
from fxlrp.rules.rule import Message


def worst_cut(
    lrp: ConvertedModel, inputs: Mapping[str, Tensor], orders: int = 2, most: int = 24
) -> tuple[float, frozenset[str]]:
    """The largest relative gap over cuts of the graph, and the names of the values before that cut.

    Cuts are the prefixes (``most`` of them, evenly spread) of ``orders`` random topological orders of the
    carrying values.
    """
    lrp(**inputs)
    plan = lrp.plan
    captured = lrp.conversion.captured(inputs)
    carrying = [node for node in plan.program.graph.nodes if node in plan.carrying]
    rewritten = rewrite(plan, carrying, ledger=True)
    arguments = lrp.conversion.arguments(plan.program, rewritten, inputs)
    assert captured.program is plan.program
    worst = (0.0, frozenset[str]())
    for before in _prefixes(plan, carrying, orders, most):
        worst = max(
            worst,
            (_gap(plan, rewritten, carrying, before, arguments), frozenset(n.name for n in before)),
            key=_badness,
        )
    return worst


def _badness(found: tuple[float, frozenset[str]]) -> float:
    return found[0] if found[0] == found[0] else float("inf")


def _prefixes(plan: Plan, carrying: list[fx.Node], orders: int, most: int) -> Iterator[frozenset[fx.Node]]:
    drawn = to_networkx(carrying)
    attributed = {each.node for each in plan.structure.attributed}
    for seed in range(orders):
        rng = random.Random(seed)
        priority = {node: rng.random() for node in carrying}
        order = list(nx.lexicographical_topological_sort(drawn, key=priority.__getitem__))
        step = max(1, len(order) // most)
        for length in range(1, len(order) + 1, step):
            # The inputs have no ancestors: they are on the input side of every cut.
            yield frozenset(order[:length]) | (attributed & plan.carrying)


def _gap(
    plan: Plan,
    rewritten: Rewritten,
    carrying: list[fx.Node],
    before: frozenset[fx.Node],
    arguments: list[Any],
) -> float:
    output: Any = rewritten.module.graph.output_node().args[0]
    image = {made: node for node, made in zip(carrying, output[2], strict=True)}
    given = iter(arguments)
    values: dict[fx.Node, Any] = {}
    leaves: list[Tensor] = []
    with torch.enable_grad():
        for made in rewritten.module.graph.nodes:
            if made.op == "output":
                break
            if made.op == "placeholder":
                value = next(given)
            else:
                args, kwargs = fx.map_arg((made.args, dict(made.kwargs)), values.__getitem__)
                value = made.target(*args, **kwargs)
            values[made] = _as_leaves(value, leaves) if image.get(made) in before else value
        flat = [values[y] for y in output[0] if isinstance(y, fx.Node)]
        logits = next(y for y in flat if isinstance(y, Tensor) and y.is_floating_point())
        explained = logits[0].flatten()[-2]
    beyond = [i for i, source in enumerate(rewritten.sources) if source.user not in before]
    constants = [values[output[3][i][0]] for i in beyond]
    sites = [(leak, site) for leak, site in zip(rewritten.leaks, output[4], strict=True) if leak.node not in before]
    watched = [*leaves, *constants, *(values[site[0]] for _, site in sites)]
    wanted = [value for value in watched if value.requires_grad]
    if not explained.requires_grad:
        return 0.0
    grads = dict(zip(map(id, wanted), torch.autograd.grad(explained, wanted, allow_unused=True), strict=True))
    messages = [(value, grads.get(id(value))) for value in [*leaves, *constants]]
    amounts = [relevance_of(Message.GRADIENT, x, g).double().sum() for x, g in messages if g is not None]
    for leak, (node, operands, extras) in sites:
        message = grads.get(id(values[node]))
        if message is not None:
            operand_values = fx.map_arg((operands, extras), values.__getitem__)
            amounts.append(leak.call.leak(values[node], message, *operand_values[0], *operand_values[1]))
    passed = torch.stack(amounts or [torch.zeros((), dtype=torch.float64)])
    scale = max(float(explained.detach().abs()), 1e-3 * float(passed.abs().sum()))
    return float((explained.detach().double() - passed.sum()).abs()) / scale


def _as_leaves(value: Any, leaves: list[Tensor]) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_as_leaves(item, leaves) for item in value)
    if not is_continuous(value):
        return value
    leaf = value.detach().requires_grad_()
    leaves.append(leaf)
    return leaf
