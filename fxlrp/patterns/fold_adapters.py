"""Merges adapters into the linear layer beside them: W x + b + s B A x is (W + s B A) x + b.

In: a program. Out: a program of equal values (to rounding) in which rules meet one linear map where the model has the
sum of several of one input, as adapters that were not merged leave it. Rules that look at signs would otherwise see the
parts apart, which cancel.

Such a sum is made of linear layers one after another, of products with a number for each column, and of sums of these.
What makes a summand an adapter, and no layer of its own, is that it brings fewer weights than the matrix has entries:
two factors of low rank, a scale for each column, a matrix that is computed from little.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from math import prod
from operator import sub
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Proxy

from fxlrp.capture import Program
from fxlrp.capture import torch_private as private
from fxlrp.capture.arithmetic import cast, layer, matrix_product, over, plus, reshaped, times, transposed
from fxlrp.capture.builder import Builder
from fxlrp.graph.linear_sums import Role, role
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import ancestors, drop_unused, tensor_value
from fxlrp.graph.operators import Dependence, Move, in_slots, operator_of, row_map


def fold_adapters(program: Program) -> Program:
    """A copy of ``program`` with every such sum as one layer."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, values))
    inside = dependent(graph, (values[program.placeholders[name]] for name in program.inputs))
    sums = Sums(inside)
    for node in graph.nodes:
        sums.look_at(node)
    made: dict[fx.Node, fx.Node] = {}
    merged: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):  # the outermost sums first
        source = None if node in merged else sums.source(node)
        if source is not None:
            between = sums.between(source, node)
            merged |= between
            made[node] = _merge(graph, node, source, between, inside)
    drop_unused(graph)
    moved = {old: made.get(new, new) for old, new in values.items()}
    fused = {moved[end]: region.moved(moved) for end, region in program.fused.items()}
    return replace(program, graph=graph, fused=fused)


class Sums:
    """Of which values each value of a graph is a linear map, plus a constant, and in which sums adapters are added."""

    def __init__(self, inside: Container[fx.Node]) -> None:
        self.inside = inside
        #: Of each value, those that it is a map of, itself among them, and whether a linear layer lies on every way.
        self._maps: dict[fx.Node, dict[fx.Node, bool]] = {}
        self._sources: dict[fx.Node, fx.Node] = {}

    def look_at(self, node: fx.Node) -> None:
        """Take in a node, those that it is made of having been taken in before."""
        what, operands = step(node, self.inside)
        found = [self._maps[each] for each in operands]
        if len(found) == 1:
            self._maps[node] = {source: mapped or what is Role.MAP for source, mapped in found[0].items()}
        elif len(found) == 2:
            shared = {source: mapped and found[1][source] for source, mapped in found[0].items() if source in found[1]}
            source = next((source for source in sorted(shared, reverse=True) if shared[source]), None)
            if source is not None and self._adapts(source, node, operands):
                self._maps[node] = shared
                if self._is_alone(source, node):
                    self._sources[node] = source
        self._maps.setdefault(node, {})[node] = False

    def source(self, node: fx.Node) -> fx.Node | None:
        """The value that the node is a sum of linear maps of, one of them an adapter; None of any other node."""
        return self._sources.get(node)

    def between(self, source: fx.Node, node: fx.Node) -> frozenset[fx.Node]:
        """The nodes by which ``node`` is made of ``source``, ``node`` among them."""
        return frozenset(ancestors(node, (source,), lambda each: step(each, self.inside)[1])) - {source}

    def _is_alone(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether nothing else takes what a sum is made of."""
        between = self.between(source, node)
        return all(user in between for each in between - {node} for user in each.users)

    def _adapts(self, source: fx.Node, node: fx.Node, operands: list[fx.Node]) -> bool:
        """Whether one of two summands is an adapter of the other."""
        value, given = tensor_value(node), tensor_value(source)
        assert value is not None
        assert given is not None
        brought = [_weights(self.between(source, each), self.inside) for each in operands]
        fewest = min(_numbers(brought[0] - brought[1]), _numbers(brought[1] - brought[0]))
        return fewest < prod((*value.shape[-1:], *given.shape[-1:]))


def step(node: fx.Node, inside: Container[fx.Node]) -> tuple[Role | None, list[fx.Node]]:
    """What a node does within a sum of linear maps of the last axis, and the operands that it does it to; constants are
    none of them. Nothing for a node that does something else.
    """
    what = role(node, inside) if node.op == "call_function" and node in inside else None
    value = tensor_value(node)
    if what is None or node.kwargs or value is None or not value.ndim:
        return None, []
    live = [each for each in node.args if isinstance(each, fx.Node) and each in inside]
    constants = [each for each in node.args if each not in live]
    if what is Role.MAP:
        mapped = row_map(node)
        return (what, live) if mapped is not None and mapped.value == 0 else (None, [])
    if what is Role.MOVE:
        operator, before = operator_of(node), tensor_value(live[0])
        stays = operator is not None and operator.move is Move.STAYS and before is not None
        return (what, live) if stays and before is not None and before.shape == value.shape else (None, [])
    wide = [tensor_value(each) for each in live]
    fit = all(each is not None and each.ndim == value.ndim and each.shape[-1] == value.shape[-1] for each in wide)
    added = what is Role.SUM
    row = all(_is_row(each, value.shape[-1], number=not added) for each in constants)
    return (what, live) if fit and row and len(live) <= (2 if added else 1) else (None, [])


def _is_row(value: Any, width: Any, number: bool) -> bool:
    """Whether a constant has one number for each column, or (if ``number``) one for all."""
    if isinstance(value, (int, float)):
        return number
    held = tensor_value(value) if isinstance(value, fx.Node) else None
    if held is None or not held.is_floating_point() or any(size != 1 for size in held.shape[:-1]):
        return False
    return bool(held.shape[-1:] == (width,) or (number and held.shape[-1:] in ((), (1,))))


def _weights(nodes: frozenset[fx.Node], inside: Container[fx.Node]) -> frozenset[fx.Node]:
    """The model's own tensors that the constants of some nodes are made of."""
    constants = [each for node in nodes for each in node.all_input_nodes if each not in inside]
    found = {each for constant in constants for each in ancestors(constant, ())} | {*constants}
    return frozenset(each for each in found if each.op == "placeholder")


def _numbers(weights: frozenset[fx.Node]) -> int:
    return sum(value.numel() for value in map(tensor_value, weights) if value is not None)


@dataclass(frozen=True)
class Affine:
    """weight diag(scale) x + bias: the weight [out, in] (None: x as it is), numbers for the columns of x, a bias."""

    weight: Proxy | None = None
    scale: Any = 1.0
    bias: Proxy | None = None

    def then_layer(self, weight: Proxy, bias: Proxy | None) -> Affine:
        """This map, then a linear layer."""
        own = self.bias
        if own is not None:
            moved = reshaped(matrix_product(weight, reshaped(own, [-1, 1])), [-1])
            bias = moved if bias is None else plus(moved, bias)
        whole = _scaled(weight, self.scale) if self.weight is None else matrix_product(weight, self.weight)
        return Affine(whole, 1.0, bias)

    def then_scale(self, factor: Any) -> Affine:
        """This map, then a product with a row of factors, or one."""
        column = reshaped(factor, [-1, 1])
        return Affine(
            None if self.weight is None else _scaled(self.weight, column),
            _scaled(factor, self.scale) if self.weight is None else 1.0,
            None if self.bias is None else _scaled(self.bias, factor),
        )

    def then_bias(self, bias: Proxy) -> Affine:
        """This map and a constant row."""
        return replace(self, bias=bias if self.bias is None else plus(self.bias, bias))

    def joined(self, other: Affine) -> Affine:
        """The sum of two maps that have weights."""
        biases = [bias for bias in (self.bias, other.bias) if bias is not None]
        return Affine(plus(self.weight, other.weight), 1.0, reduce(plus, biases) if biases else None)


def _scaled(value: Any, factor: Any) -> Any:
    return value if isinstance(factor, float) and factor == 1.0 else times(value, factor)


def _merge(
    graph: fx.Graph, root: fx.Node, source: fx.Node, between: frozenset[fx.Node], inside: Container[fx.Node]
) -> fx.Node:
    """Put one layer in the place of a sum."""
    value = tensor_value(root)
    assert value is not None
    builder = Builder(graph, private.fake_mode_of(value))
    builder.origin = root.meta
    with graph.inserting_before(root):
        maps = {source: Affine()}
        for node in sorted(between):
            maps[node] = _map_of(node, maps, partial(_constant, builder, value.dtype), inside)
        made = maps[root]
        assert made.weight is not None
        merged = layer(Proxy(source, builder), cast(made.weight, value.dtype), made.bias).node
        merged.meta = dict(root.meta)
    root.replace_all_uses_with(merged)
    return merged


def _constant(builder: Builder, dtype: torch.dtype, value: Any, row: bool = False) -> Any:
    """A constant of a sum in its type, a number as it is; with ``row`` without axes of one entry."""
    if not isinstance(value, fx.Node):
        return float(value)
    found = cast(Proxy(value, builder), dtype)
    return reshaped(found, [-1]) if row else found


def _map_of(node: fx.Node, maps: Mapping[fx.Node, Affine], constant: Any, inside: Container[fx.Node]) -> Affine:
    """The map that a node of a sum is, given those of what it is made of."""
    what, live = step(node, inside)
    before = maps[live[0]]
    if what is Role.MAP:
        mapped = row_map(node)
        assert mapped is not None
        weight = constant(node.args[mapped.weight])
        bias = next(in_slots(node, () if mapped.bias is None else (mapped.bias,)), None)
        weight = weight if mapped.channels == 0 else transposed(weight)
        return before.then_layer(weight, None if bias is None else constant(bias))
    if what is Role.MOVE:
        return before
    operator = operator_of(node)
    negated = operator is not None and operator.arithmetic is sub
    if what is Role.SCALE:
        others = [each for each in node.args if each is not live[0]]
        factor = constant(others[0], row=True) if others else -1.0
        divides = operator is not None and operator.dependence is Dependence.QUOTIENT
        return before.then_scale(over(1.0, factor) if divides else factor)
    if len(live) == 2:
        other = maps[live[1]]
        return before.joined(other.then_scale(-1.0) if negated else other)
    first = node.args[0] is live[0]
    bias = constant(node.args[1] if first else node.args[0], row=True)
    if negated and first:
        return before.then_bias(times(bias, -1.0))
    return (before.then_scale(-1.0) if negated else before).then_bias(bias)
