"""Merges scales and shifts by constants into the linear map before them, so that rules meet one map.

In: a program. Out: a program of equal values (to rounding) in which a linear layer or convolution whose result is
multiplied by, and added to, one number a channel (as by a batch norm in eval mode) has these in its weight and bias.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Proxy

from fxlrp.capture import Program
from fxlrp.capture import torch_private as private
from fxlrp.capture.arithmetic import cast, entries, over, plus, reshaped, times
from fxlrp.capture.builder import Builder
from fxlrp.capture.canonical import Fused
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import drop_unused, tensor_value
from fxlrp.graph.operator_table import ALIAS
from fxlrp.graph.operators import LinearMap, Move, is_continuous, operator_of

#: a and b of y a + b after one more step by c, where y is the first operand of the step and where it is the second, by
#: the arithmetic of the step.
Effect = Callable[[Any, Any, Any], tuple[Any, Any]]
STEPS: dict[Any, tuple[Effect, Effect | None]] = {
    operator.add: (lambda a, b, c: (a, plus(b, c)), lambda a, b, c: (a, plus(b, c))),
    operator.sub: (
        lambda a, b, c: (a, plus(b, times(c, -1.0))),
        lambda a, b, c: (times(a, -1.0), plus(c, times(b, -1.0))),
    ),
    operator.mul: (lambda a, b, c: (times(a, c), times(b, c)), lambda a, b, c: (times(a, c), times(b, c))),
    operator.neg: (lambda a, b, c: (times(a, -1.0), times(b, -1.0)), None),
    operator.truediv: (lambda a, b, c: (over(a, c), over(b, c)), None),
}


@dataclass(frozen=True)
class LinearChain:
    """A linear map and the steps by constants behind it: each an operator's effect on y a + b, and its constant."""

    form: LinearMap
    start: fx.Node
    steps: tuple[tuple[Effect, Any], ...] = ()
    end: fx.Node | None = None

    @property
    def bias(self) -> Any:
        """The bias of the map, None if it has none."""
        slot = self.form.bias
        return self.start.args[slot] if slot is not None and slot < len(self.start.args) else None


def fold_affine(program: Program) -> tuple[Program, Mapping[fx.Node, fx.Node]]:
    """A copy of ``program`` with every such chain merged, and the new node of each old one that is still there.

    The merged map keeps the place of the linear map in the model; where the chain ended stands its alias, and what lay
    between is no value any more.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, values))
    inside = dependent(graph, (values[program.placeholders[name]] for name in program.inputs))
    for node in list(graph.nodes):
        known = operator_of(node)
        maps = known.maps if known is not None else ()
        form = next((each for each in maps if each.bias is not None and each.fits(node)), None)
        if form is not None:
            _merge(graph, _longest(LinearChain(form, node), inside))
    drop_unused(graph)
    alive = set(graph.nodes)
    moved = {old: new for old, new in values.items() if new in alive}
    fused = {moved[end]: region.moved(moved) for end, region in program.fused.items() if _whole(end, region, moved)}
    return replace(program, graph=graph, fused=fused), moved


def _longest(chain: LinearChain, inside: frozenset[fx.Node]) -> LinearChain:
    """The chain with as many steps as there are, up to one whose result is of the map's type."""
    node, value, steps = chain.start, tensor_value(chain.start), list[tuple[Effect, Any]]()
    if value is None or not _is_constant(chain, inside):
        return chain
    while len(node.users) == 1:
        user = next(iter(node.users))
        known = operator_of(user)
        if known is None or known.move is not Move.STAYS:
            step = _step(user, node, chain, inside)
            if step is None:
                break
            steps.append(step)
        node, found = user, tensor_value(user)
        if steps and found is not None and found.dtype == value.dtype:
            chain = replace(chain, steps=tuple(steps), end=node)
    return chain


def _is_constant(chain: LinearChain, inside: frozenset[fx.Node]) -> bool:
    """Whether weight and bias of the map are constants, the bias with one entry a channel."""
    weight, bias = chain.start.args[chain.form.weight], chain.bias
    given = tensor_value(bias) if isinstance(bias, fx.Node) else None
    return (
        not chain.start.kwargs
        and isinstance(weight, fx.Node)
        and weight not in inside
        and (bias is None or (given is not None and given.ndim == 1 and bias not in inside))
    )


def _step(node: fx.Node, before: fx.Node, chain: LinearChain, inside: frozenset[fx.Node]) -> tuple[Effect, Any] | None:
    """What ``node`` does to the result of the map, None if that is no step by one constant a channel."""
    known = operator_of(node)
    effects = STEPS.get(known.arithmetic) if known is not None else None
    operands = (*node.args, None)[:2]
    if effects is None or len(node.args) > 2 or node.kwargs:
        return None
    place = operands.index(before)
    effect, constant = effects[place], operands[1 - place]
    fits = constant is None or isinstance(constant, (int, float)) or _per_channel(constant, chain, inside)
    return (effect, constant) if effect is not None and fits else None


def _per_channel(constant: Any, chain: LinearChain, inside: frozenset[fx.Node]) -> bool:
    """Whether a constant has one entry for each channel of the map's output, or one for all."""
    value, weight = tensor_value(constant), tensor_value(chain.start.args[chain.form.weight])  # type: ignore[arg-type]
    if constant in inside or weight is None or value is None or not is_continuous(value):
        return False
    shape = dict(enumerate(reversed(value.shape), 1))
    channels = shape.pop(weight.ndim - 1 if chain.form.spatial else 1, 1)  # that axis of the output, from its end
    return channels in (1, weight.shape[chain.form.channels]) and all(size == 1 for size in shape.values())


def _merge(graph: fx.Graph, chain: LinearChain) -> None:
    """Put the merged map, and its alias, in the place where the chain ends."""
    start, end, value = chain.start, chain.end, tensor_value(chain.start)
    if end is None or value is None or chain.form.bias is None:
        return
    builder = Builder(graph, private.fake_mode_of(value))
    builder.origin = start.meta
    form, args = chain.form, list(start.args)

    def proxy(given: Any) -> Any:
        return Proxy(given, builder) if isinstance(given, fx.Node) else given

    with graph.inserting_before(end):
        a, b = 1.0, 0.0 if chain.bias is None else proxy(chain.bias)
        for step, constant in chain.steps:
            c = proxy(constant)
            a, b = step(a, b, reshaped(c, [-1]))
        args[form.weight], bias = _merged(proxy(args[form.weight]), a, b, form.channels, value.dtype)
        args[chain.form.bias : chain.form.bias + 1] = [bias]
        made = graph.call_function(start.target, tuple(args))  # type: ignore[arg-type]
        made.meta = dict(start.meta)
        alias = graph.call_function(ALIAS, (made,))
        alias.meta = dict(end.meta)
    end.replace_all_uses_with(alias)


def _merged(weight: Any, a: Any, b: Any, axis: int, dtype: torch.dtype) -> list[fx.Node]:
    """Weight and bias of a (W x) + b, in the type of the map."""
    shape = weight.node.meta["val"].shape
    spread = [-1 if i == axis else 1 for i in range(len(shape))]
    found = times(weight, reshaped(a, spread)), entries(b, shape[axis], weight)
    return [cast(each, dtype).node for each in found]


def _whole(end: fx.Node, region: Fused, moved: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether nothing of a fused operator was merged into another."""
    needed = [end, *region.members]
    fx.map_arg((region.args, dict(region.kwargs)), needed.append)
    return all(node in moved for node in needed)
