"""What a sum of linear maps is beside its value: its offset, and the units of the lower layer, row by row.

Both are walked through the same nodes as the value. Values and moves are emitted once, however many sums share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from fxlrp.graph.linear_sums import Role, moved_axes, role
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import packet
from fxlrp.planning.plan import Plan
from fxlrp.rules.operation import Operation, take_apart


@dataclass(frozen=True)
class Unit:
    """A value of the lower layer in rows that broadcast with those of a sum.

    ``mapped``: its last axis is no longer that of the sum, as a linear map lies between. ``several``: the node is a
    list of pieces.
    """

    node: fx.Node
    mapped: bool = False
    several: bool = False


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """An operation on other operands, without a rule."""

    operation: Operation

    @property
    def __name__(self) -> str:
        return "offset"

    def __call__(self, *values: Any) -> Any:
        """Its value."""
        count = len(self.operation.live)
        return self.operation.bind(values[count:])(*values[:count])


class Layers:
    """Emits the offset and the units of the sums of a plan into the rewritten graph.

    ``values`` are the emitted values, ``held`` the leaves that stand for additive constants, by node and operand, and
    ``constant`` gives a value cut off from relevance.
    """

    def __init__(
        self,
        plan: Plan,
        graph: fx.Graph,
        values: Mapping[fx.Node, fx.Node],
        held: Mapping[tuple[fx.Node, int], Any],
        constant: Callable[[Any], Any],
    ) -> None:
        self.plan, self.graph, self.values, self.held, self.constant = plan, graph, values, held, constant
        self.offsets: dict[fx.Node, fx.Node | None] = {}
        self.units: dict[fx.Node, tuple[Unit, ...]] = {}

    def offset_of(self, root: fx.Node, z: fx.Node) -> fx.Node:
        """What the sum with the emitted value ``z`` is where all of its units are 0."""
        found = self._offset(root)
        return self.graph.call_function(_nothing_like, (z,)) if found is None else self._like(found, z)

    def units_of(self, root: fx.Node) -> tuple[fx.Node, ...]:
        """The units of the sum, each once."""
        return tuple(dict.fromkeys(unit.node for unit in self._units(root)))

    def _like(self, offset: fx.Node, value: fx.Node) -> fx.Node:
        return self.graph.call_function(_expanded, (offset, value))

    # --- offsets ------------------------------------------------------------------------------------------------

    def _offset(self, node: fx.Node) -> fx.Node | None:
        if node not in self.offsets:
            self.offsets[node] = self._make_offset(node)
        return self.offsets[node]

    def _make_offset(self, node: fx.Node) -> fx.Node | None:
        what = role(node, self.plan.carrying)
        site = take_apart(node, self.plan.carrying.__contains__)
        operation, constants = site.operation, self._constants(node, site.operation, site.operands)
        if what is Role.MAP:
            bias = next((value for i, value in constants.items() if i >= operation.factors and value is not None), None)
            return None if bias is None else self._like(bias, self.values[node])
        below = {i: self._below(n) for i, n in enumerate(site.operands) if operation.live[i]}
        terms = [value for i, value in constants.items() if i >= operation.factors and value is not None]
        if all(offset is None for offset in below.values()) and not terms:
            return None
        like = next(self.values[n] for i, n in enumerate(site.operands) if operation.live[i])
        if what is Role.MOVE:
            return self.graph.node_copy(node, lambda n: below[0] if n is site.operands[0] else self.constant(n))
        zero = self.graph.call_function(_zero_like, (like,)) if None in below.values() else None
        operands = [constants[i] if i in constants else below[i] or zero for i in range(len(site.operands))]
        target = replace(operation, target=packet(operation.target))  # whatever of the operands are numbers
        extras = [self.constant(extra) for extra in site.extras]
        made = self.graph.call_function(Elsewhere(target), (*operands, *extras))
        return made if node in self.plan.sums.roots else self._like(made, self.values[node])

    def _below(self, node: fx.Node) -> fx.Node | None:
        return self._offset(node) if node in self.plan.sums.inner else None

    def _constants(self, node: fx.Node, operation: Operation, operands: tuple[Any, ...]) -> dict[int, Any]:
        """The operands that carry no relevance, additive ones as the leaves that stand for them."""
        return {
            i: self.held[node, i] if (node, i) in self.held else self.constant(value)
            for i, value in enumerate(operands)
            if not operation.live[i]
        }

    # --- units --------------------------------------------------------------------------------------------------

    def _units(self, node: fx.Node) -> tuple[Unit, ...]:
        if node not in self.units:
            self.units[node] = tuple(self._make_units(node))
        return self.units[node]

    def _make_units(self, node: fx.Node) -> Iterable[Unit]:
        what = role(node, self.plan.carrying)
        site = take_apart(node, self.plan.carrying.__contains__)
        for operand in (n for i, n in enumerate(site.operands) if site.operation.live[i]):
            if what is Role.MAP:
                yield Unit(self.values[operand], mapped=True)
                continue
            for unit in self._units(operand) if operand in self.plan.sums.inner else (Unit(self.values[operand]),):
                if what is Role.MOVE:
                    yield self._moved(node, operand, unit)
                else:  # a single entry that is broadcast is connected to the whole row
                    yield replace(unit, mapped=unit.mapped or _width(operand) != _width(node))

    def _moved(self, node: fx.Node, source: fx.Node, unit: Unit) -> Unit:
        axes = moved_axes(node)
        if axes == () and not unit.several:
            return unit
        if axes and -1 in axes and unit.mapped:
            return unit  # every piece of the sum is connected to all of it
        given = unit.node
        if not unit.several:
            given = self.graph.call_function(_in_rows, (given, self.values[source]))
        moved = self.graph.node_copy(node, lambda n: given if n is source else self.constant(n))
        return Unit(moved, unit.mapped, isinstance(node.meta.get("val"), (list, tuple)))


def _expanded(x: Tensor, like: Tensor) -> Tensor:
    return x.expand(like.shape)


def _zero_like(x: Tensor) -> Tensor:
    return x.new_zeros(())


def _nothing_like(x: Tensor) -> Tensor:
    return x.new_zeros(()).expand(x.shape)


def _in_rows(unit: Tensor, value: Tensor) -> Tensor:
    """The unit in as many rows as the value that was made of it, so that they move alike."""
    return unit.expand(*value.shape[:-1], unit.shape[-1])


def _width(node: fx.Node) -> Any:
    value = tensor_value(node)
    return value.shape[-1] if value is not None and value.ndim else 1
