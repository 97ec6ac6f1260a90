"""Two recordings of one model on inputs of different lengths, joined to one that holds for other lengths as well.

In: two programs that were recorded. Out: the first with every number that differs between the two, also of those that
were decided, written as a x length + b, where the length is read from an input, and every list of integers that was
read made longer by its last entry; None where they differ in anything else.

Two recordings do not prove that a number grows like that. The joined one is therefore compared with its model on every
length that it meets, and given up where it is wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.decisions import Decisions
from fxlrp.capture.program import Program
from fxlrp.graph.nodes import ancestors

aten = torch.ops.aten
#: An axis of a leaf of the inputs.
Axis = tuple[str, int]


class _Apart(Exception):
    """Two recordings differ in more than numbers that grow with one length."""


@dataclass(frozen=True)
class _Length:
    """The axes that one length lies along, and what it was in both recordings."""

    axes: tuple[Axis, ...]
    one: int
    other: int


def joined(one: Program, other: Program) -> Program | None:
    """The program that stands for both recordings and, as far as two tell, for those of other lengths."""
    try:
        return _joined(one, other)
    except _Apart:
        return None


def _joined(one: Program, other: Program) -> Program:
    if one.recorded is None or other.recorded is None or one.decisions is None or other.decisions is None:
        raise _Apart
    length = _length(one.recorded, other.recorded)
    _demand(one.free == other.free == () and one.output_spec == other.output_spec)
    _demand(len(one.fused) == len(other.fused))
    joining = _Joining(one.graph, other.graph, length, _held(one), _held(other), one.inputs)
    graph, values = joining.run()
    fused = {values[node]: mine.moved(values) for node, mine in one.fused.items()}
    for (node, mine), (twin, its) in zip(one.fused.items(), other.fused.items(), strict=True):
        _demand(joining.twins[node] is twin and mine.target == its.target)
        joining.alike((mine.args, dict(mine.kwargs)), (its.args, dict(its.kwargs)))
    shapes = {
        name: tuple(None if (name, axis) in length.axes else size for axis, size in enumerate(shape))
        for name, shape in one.shapes.items()
    }
    decisions = _decisions(one.decisions, other.decisions, length, one.input_leaves)
    return replace(one, graph=graph, fused=fused, shapes=shapes, decisions=decisions, free=length.axes)


def _decisions(one: Decisions, other: Decisions, length: _Length, leaves: Sequence[str]) -> Decisions:
    """Those of the first; of a number that grows with the length what it is beyond that is decided: nothing."""
    inputs = {name: leaves[place] for name, place in one.inputs.items()}
    mine, its = ({**each.weights, **each.constants, **each.inputs} for each in (one, other))
    joining = _Joining(one.module.graph, other.module.graph, length, mine, its, inputs, lengthens=True)
    graph, _ = joining.run()
    output: Any = graph.output_node()
    asked, values = list(output.args[0]), list(one.values)
    with graph.inserting_before(output):
        for place, (then, now) in enumerate(zip(one.values, other.values, strict=True)):
            if then != now:
                _demand(type(then) is type(now) is int)
                asked[place] = graph.call_function(operator.sub, (asked[place], joining.both(then, now)))
                values[place] = 0
    output.args = (tuple(asked),)
    graph.lint()
    return replace(one, module=fx.GraphModule({}, graph), values=tuple(values))


def _held(program: Program) -> dict[str, Any]:
    """What each placeholder stands for."""
    return {**program.weights, **program.constants, **program.inputs}


def _length(one: Mapping[str, Any], other: Mapping[str, Any]) -> _Length:
    """The length by which the leaves of two recordings differ."""
    _demand(one.keys() == other.keys())
    found: dict[Axis, tuple[int, int]] = {}
    for name, mine in one.items():
        its = other[name]
        if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
            _demand(_same(mine, its))
            continue
        _demand(mine.dtype == its.dtype and mine.ndim == its.ndim)
        sizes = enumerate(zip(mine.shape, its.shape, strict=True))
        found |= {(name, axis): (a, b) for axis, (a, b) in sizes if a != b}
    _demand(len({*found.values()}) == 1)
    return _Length(tuple(found), *next(iter(found.values())))


def _demand(holds: bool) -> None:
    if not holds:
        raise _Apart


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)


def _is_list(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 1 and len(value) > 0


def as_long(values: Tensor, size: int) -> Tensor:
    """A list cut to a size, or made as long by its last entry."""
    return torch.cat((values[:size], values[-1:].expand(max(size - len(values), 0))))


class _Joining:
    """Walks through two graphs side by side and writes the first anew."""

    def __init__(
        self,
        one: fx.Graph,
        other: fx.Graph,
        length: _Length,
        mine: Mapping[str, Any],
        its: Mapping[str, Any],
        inputs: Mapping[str, str],
        lengthens: bool = False,
    ) -> None:
        self.one, self.other, self.length = one, other, length
        self.mine, self.its, self.inputs = mine, its, inputs
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.twins: dict[fx.Node, fx.Node] = {}
        self.numbers: dict[tuple[int, int], fx.Node] = {}
        self.lengthens = lengthens
        self.lists: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self.read: fx.Node | None = None

    def run(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """The joined graph, and its nodes by those of the first."""
        _demand(len(self.one.nodes) == len(self.other.nodes))
        needed = {*ancestors(self.one.output_node())}
        for node, twin in zip(self.one.nodes, self.other.nodes, strict=True):
            _demand(node.op == twin.op)
            self.twins[node] = twin
            if node.op == "placeholder":
                self.values[node] = self.graph.node_copy(node)
                mine, its = self.mine[str(node.target)], self.its[str(twin.target)]
                if node in needed and not _same(mine, its):
                    _demand(self.lengthens and _is_list(mine) and _is_list(its))
                    self.lists[node] = (mine, its)
                continue
            self._lengthen()
            args, kwargs = self.both((node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)))
            if node.op == "output":
                self.graph.output(args[0])
                continue
            _demand(node.op == "call_function" and node.target == twin.target)
            self.values[node] = self.graph.call_function(node.target, args, kwargs)
            self.values[node].meta = dict(node.meta)
        self.graph.lint()
        return self.graph, self.values

    def alike(self, a: Any, b: Any) -> None:
        """Demand that two arguments are one, whatever the length."""
        before = len(self.numbers)
        self.both(a, b)
        _demand(len(self.numbers) == before)

    def both(self, a: Any, b: Any) -> Any:
        """An argument that stands for both."""
        if isinstance(a, fx.Node):
            _demand(self.twins[a] is b)
            return self.values[a]
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*self.both((a.start, a.stop, a.step), (b.start, b.stop, b.step)))
        if isinstance(a, (list, tuple)):
            _demand(isinstance(b, (list, tuple)) and len(a) == len(b))
            return type(a)([self.both(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, Mapping):
            _demand(isinstance(b, Mapping) and a.keys() == b.keys())
            return {key: self.both(value, b[key]) for key, value in a.items()}
        if type(a) is int and type(b) is int and a != b:
            return self._number(a, b)
        _demand(_same(a, b))
        return a

    def _lengthen(self) -> None:
        """Lists that differ stand in their length: what was read of an input whose last entries are alike."""
        for node, (a, b) in self.lists.items():
            _demand(_same(as_long(a, len(b)), b) and _same(as_long(b, len(a)), a))
            self.values[node] = self.graph.call_function(as_long, (self.values[node], self._number(len(a), len(b))))
        self.lists.clear()

    def _number(self, a: int, b: int) -> fx.Node:
        """slope x length + rest, for what is a at the one length and b at the other."""
        slope, rest = divmod(b - a, self.length.other - self.length.one)
        _demand(rest == 0)
        first = a - slope * self.length.one
        if (slope, first) not in self.numbers:
            found, value = self._read(), slope * self.length.one
            if slope != 1:
                found = self._made(operator.mul, (found, slope), value)
            self.numbers[slope, first] = self._made(operator.add, (found, first), a) if first else found
        return self.numbers[slope, first]

    def _read(self) -> fx.Node:
        """The length, from an input that the graph has."""
        if self.read is None:
            axes = dict(self.length.axes)
            own = [n for n in self.values.values() if n.op == "placeholder" and self.inputs.get(str(n.target)) in axes]
            _demand(bool(own))
            self.read = self._made(aten.sym_size.int, (own[0], axes[self.inputs[str(own[0].target)]]), self.length.one)
        return self.read

    def _made(self, target: Any, args: tuple[Any, ...], value: int) -> fx.Node:
        made = self.graph.call_function(target, args)
        made.meta["val"] = value
        return made
