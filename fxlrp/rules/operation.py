"""An operation as a rule sees it: a function of its operands, every other argument fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.graph.activations import SpelledActivation
from fxlrp.graph.axes import samples_axis
from fxlrp.graph.operator_table import ALIAS, SAFE_SOFTMAX
from fxlrp.graph.operators import OPERATORS, Operator, assumed_of, packet, parameter_names
from fxlrp.rules.primitives import known


@dataclass(frozen=True)
class Hole:
    """The place of an operand (or, negative, of an argument that is a value but no operand) in a call."""

    index: int


def softmax_of_some(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The softmax that is 0 where nothing is left of a row. On a CPU to look for such rows costs more than the softmax,
    to see that there is none costs little.
    """
    y = torch.softmax(x, dim, dtype)
    return y if known(lambda: torch.isfinite(y.sum()), y) else SAFE_SOFTMAX(x, dim, dtype)


#: Functions of the same values and derivatives, which are computed in less time.
QUICKER: dict[Any, Callable[..., Any]] = {SAFE_SOFTMAX: softmax_of_some}


@dataclass(frozen=True)
class Operation:
    """``target`` with everything fixed but its operands: factors, then terms, in each group those that carry
    relevance first.

    ``live`` tells for each operand whether it carries relevance, ``factors`` how many of the operands are
    factors. An operand that is neither live nor a factor is an additive constant: a source. ``samples`` is the axis of
    the value along which samples lie, ``samples_by_operand`` that of each operand.
    """

    target: Any
    operator: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    live: tuple[bool, ...]
    factors: int
    extras: tuple[Any, ...] = ()
    reference: Reference | None = None
    samples: int = 0
    samples_by_operand: tuple[int, ...] | None = None

    def __call__(self, *operands: Any) -> Any:
        """The operation's value on other operands."""
        values = fill((self.args, self.kwargs), operands, self.extras)
        return QUICKER.get(self.target, self.target)(*values[0], **values[1])

    def bind(self, extras: Sequence[Any]) -> Operation:
        """The operation with its other arguments (sizes, masks, indices) given."""
        return replace(self, extras=tuple(extras))

    def axes_of_samples(self) -> tuple[int, ...]:
        """The axes along which samples lie, of the value and of each operand."""
        return (self.samples, *(self.samples_by_operand or (0,) * len(self.live)))

    @property
    def sources(self) -> tuple[int, ...]:
        """The positions of the operands that are additive constants."""
        return tuple(i for i, live in enumerate(self.live) if i >= self.factors and not live)

    @property
    def slope(self) -> Callable[[Tensor], Tensor] | None:
        """(f(x) - f(0)) / x of an activation in closed form, with its parameters filled in."""
        spelled = isinstance(self.target, SpelledActivation)
        closed = self.target.closed_slope if spelled else self.operator.slope
        if closed is None:
            return None
        arguments = tuple(a for a in self.args[1:] if not isinstance(a, Hole))
        options = {k: v for k, v in self.kwargs.items() if not isinstance(v, Hole)}
        return lambda x: closed(x, *arguments, **options)


@dataclass(frozen=True)
class Reference:
    """The same operation elsewhere: with the operands and other arguments that it has on the reference input."""

    operation: Operation
    operands: tuple[Any, ...]

    @property
    def value(self) -> Any:
        """The operation's value on the reference input."""
        return self.operation(*self.operands)


#: A value as it is: what a rule acts on where a value's ways part.
IDENTITY = Operation(ALIAS, OPERATORS[packet(ALIAS)], (Hole(0),), {}, (True,), 0)


def fill(template: Any, operands: Sequence[Any], extras: Sequence[Any]) -> Any:
    """``template`` with its holes filled."""
    if isinstance(template, Hole):
        return operands[template.index] if template.index >= 0 else extras[~template.index]
    if isinstance(template, (list, tuple)):
        return type(template)([fill(item, operands, extras) for item in template])
    if isinstance(template, dict):
        return {key: fill(value, operands, extras) for key, value in template.items()}
    return template


@dataclass(frozen=True)
class Site:
    """A node taken apart: its operation, its operands (nodes, numbers or None) and its other value arguments."""

    operation: Operation
    operands: tuple[Any, ...]
    extras: tuple[fx.Node, ...]


def take_apart(node: fx.Node, carries: Callable[[fx.Node], bool]) -> Site:
    """Separate ``node`` into operation and operands; ``carries`` tells which values carry relevance."""
    operator = assumed_of(node)
    # The same node may stand in two slots (x * x); each place is an operand of its own.
    places: list[tuple[Any, int, bool]] = []
    slots = {slot: rank for rank, slot in enumerate(operator.factors + operator.terms)}
    extras: list[fx.Node] = []
    names = parameter_names(node.target)
    by_name = {names[slot]: place for slot, place in slots.items() if slot < len(names)}
    multilinear = len(operator.factors)

    def template(value: Any, place: int | None) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(template(item, place) for item in value)
        if isinstance(value, fx.Node) and place is None:
            extras.append(value)
            return Hole(~(len(extras) - 1))
        if place is None or isinstance(value, (str, bool)):
            return value
        places.append((value, place, isinstance(value, fx.Node) and carries(value)))
        return Hole(len(places) - 1)

    args = tuple(template(value, slots.get(index)) for index, value in enumerate(node.args))
    kwargs = {key: template(value, by_name.get(key)) for key, value in node.kwargs.items()}
    ranked = sorted(range(len(places)), key=lambda i: (places[i][1] >= multilinear, not places[i][2], places[i][1], i))
    rank = {old: new for new, old in enumerate(ranked)}
    renumbered = _renumbered((args, kwargs), rank)
    live = tuple(places[i][2] for i in ranked)
    factors = sum(place < multilinear for _, place, _ in places)
    operands = tuple(places[i][0] for i in ranked)
    axes = tuple(samples_axis(each) if isinstance(each, fx.Node) else 0 for each in operands)
    operation = Operation(
        *(node.target, operator, renumbered[0], renumbered[1], live, factors),
        samples=samples_axis(node),
        samples_by_operand=axes,
    )
    return Site(operation, operands, tuple(extras))


def _renumbered(template: Any, rank: dict[int, int]) -> Any:
    if isinstance(template, Hole):
        return Hole(rank[template.index]) if template.index >= 0 else template
    if isinstance(template, (list, tuple)):
        return type(template)(_renumbered(item, rank) for item in template)
    if isinstance(template, dict):
        return {key: _renumbered(value, rank) for key, value in template.items()}
    return template
