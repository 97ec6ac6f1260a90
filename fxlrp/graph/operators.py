"""What an operator is to relevance: how it depends on its arguments, its class, and its traits.

All that fxlrp knows about single operators is the table :data:`OPERATORS`, filled by
:mod:`fxlrp.graph.operator_table`. The rest of the engine asks an :class:`Operator` for its traits and slots and never
looks at a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx

from fxlrp.errors import RulesetError
from fxlrp.graph.operator_classes import GENERAL, MOVEMENT, OperatorClass


class Dependence(Enum):
    """How an operator depends on its float arguments."""

    TERMS = "jointly linear in all its terms"
    FACTORS = "linear in each of its factors, plus its terms"
    QUOTIENT = "linear in its numerator, of degree -1 in its denominator"
    HOMOGENEOUS = "jointly homogeneous of degree one (piecewise linear selections, norms)"
    ACTIVATION = "a function of one argument, entry by entry"
    ROUNDING = "next to its argument, entry by entry, but piecewise constant"
    SOFTMAX = "normalised exponentials"
    GENERAL = "differentiable, with no structure that rules could use"
    CONSTANT = "piecewise constant: carries no relevance"


class Move(Enum):
    """What a movement does to entries, where that is simple."""

    STAYS = "leaves every entry in its place: a view, a copy, a cast"
    ITEM = "takes one of several values"
    ROWS = "moves whole rows (entries along the last axis) along the axes that its arguments `dim` name"
    CUTS = "cuts the axis that its argument `dim` names into pieces, in order"
    SPREADS = "repeats entries along axes of size one"
    EXCHANGES = "exchanges the last two axes"
    JOINS = "joins several values along the axis that its argument `dim` names"


def _always(node: fx.Node) -> bool:
    return True


@dataclass(frozen=True)
class LinearMap:
    """How an operator maps one argument by weights, y = W x + b: the slots of x, W and b (None: it takes no bias), and
    which axis of W holds the channels of y. ``spatial``: it maps an axis of channels in front of spatial axes (a
    convolution), else the last axis. ``fits`` tells which calls of the operator are such a map.
    """

    value: int = 0
    weight: int = 1
    bias: int | None = 2
    channels: int = 0
    spatial: bool = False
    fits: Callable[[fx.Node], bool] = _always


#: The linear layer, in the order of arguments that torch.nn.functional.linear has.
LINEAR_LAYER = LinearMap()


@dataclass(frozen=True)
class Operator:
    """How an operator depends on its arguments, its class, its slots (positions of arguments) and its traits.

    ``factors`` are the multilinear arguments of FACTORS, the numerator and denominator of a QUOTIENT; ``terms``
    enter by addition or concatenation, so a constant among them is a source. A slot may hold a list of tensors
    (``cat``) or a number. ``parameters`` are slots of numbers that shape the function (an exponent).

    Traits: ``copies``: every entry of the result is an entry of an argument, so relevance R moves as the entries do.
    ``entrywise``: each entry of the result is made of the entries at its own place (every activation and rounding is);
    ``arithmetic``: the function of Python's :mod:`operator` that it then is; ``commutative``: its first two arguments
    may change places; ``masks``: it keeps entries, or puts others (limits) in their place. ``move``: what a movement
    does. ``rounds``: it keeps integers numbers of the same kind (hashed, halved, cut off), though no gradient passes.
    ``indexed``: it takes the entries that integers among its arguments name. ``largest``: it takes the largest entries.
    ``matrices``: it multiplies the matrices that its first two arguments hold along their last axes. ``maps``: the ways
    in which it is a linear map by weights; ``reduces``: the slot that names the axes it sums or averages over.
    ``looks_up``: it takes the rows of its first argument that the ids in the second name. ``counts``: it counts
    positions. ``sized``: it depends on the sizes of its arguments, not on their values. ``slope``: of an activation,
    (f(x) - f(0)) / x in closed form.
    """

    dependence: Dependence
    category: OperatorClass
    factors: tuple[int, ...] = ()
    terms: tuple[int, ...] = ()
    copies: bool = False
    parameters: tuple[int, ...] = ()
    entrywise: bool = False
    arithmetic: Callable[..., Any] | None = None
    commutative: bool = False
    masks: bool = False
    move: Move | None = None
    maps: tuple[LinearMap, ...] = ()
    reduces: int | None = None
    rounds: bool = False
    indexed: bool = False
    largest: bool = False
    matrices: bool = False
    looks_up: bool = False
    counts: bool = False
    sized: bool = False
    slope: Callable[..., torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.category, OperatorClass):
            raise RulesetError(
                f"An operator's class is an OperatorClass, not {self.category!r}: take one of "
                "fxlrp.graph.operator_classes, by find_class(name), or register one there."
            )
        if self.dependence in (Dependence.ACTIVATION, Dependence.ROUNDING):
            object.__setattr__(self, "entrywise", True)

    @property
    def scales(self) -> bool:
        """Whether it multiplies or divides entry by entry, and does nothing else."""
        return self.entrywise and bool(self.factors) and not self.terms


OPERATORS: dict[Any, Operator] = {}


def register(target: Any, operator: Operator) -> None:
    """Tell fxlrp what an operator outside ATen is to relevance."""
    OPERATORS[packet(target)] = operator


def packet(target: Any) -> Any:
    """The overload packet of an ATen target (``aten.add`` for ``aten.add.Tensor``), anything else unchanged."""
    return getattr(target, "overloadpacket", target)


def operator_of(node: fx.Node) -> Operator | None:
    """The operator that ``node`` applies, or None if the table does not know it."""
    return OPERATORS.get(packet(node.target)) if node.op == "call_function" else None


def assumed_of(node: fx.Node) -> Operator:
    """What a node applies; of an operator that the table does not know, that it is some function of all its values."""
    known = operator_of(node)
    return known or Operator(Dependence.GENERAL, GENERAL, terms=tuple(range(len(node.args) + len(node.kwargs))))


def in_slots(node: fx.Node, slots: tuple[int, ...]) -> Iterator[Any]:
    """The arguments of ``node`` in ``slots``, lists flattened, absent ones and None left out."""
    names = parameter_names(node.target)
    for slot in slots:
        if slot < len(node.args):
            value = node.args[slot]
        elif slot < len(names):
            value = node.kwargs.get(names[slot])
        else:
            continue
        if isinstance(value, (list, tuple)):
            yield from (item for item in value if item is not None)
        elif value is not None:
            yield value


def parameter_names(target: Any) -> tuple[str, ...]:
    """The names of an operator's parameters, in the order of its schema; none of what has no schema."""
    schema = getattr(target, "_schema", None)
    return tuple(argument.name for argument in schema.arguments) if schema is not None else ()


def nodes_in(node: fx.Node, slots: tuple[int, ...]) -> list[fx.Node]:
    """The nodes among the arguments in ``slots``, in order and possibly repeated."""
    return [value for value in in_slots(node, slots) if isinstance(value, fx.Node)]


def operands_of(node: fx.Node) -> list[fx.Node]:
    """The arguments of a node that relevance may flow to."""
    operator = operator_of(node)
    return node.all_input_nodes if operator is None else nodes_in(node, operator.factors + operator.terms)


def draws(target: Any) -> bool:
    """Whether an operator may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers: torch marks such operators; one may be told not to train, and draws none."""
    if not draws(node.target):
        return False
    given: dict[str, Any] = dict(zip(parameter_names(node.target), node.args, strict=False)) | node.kwargs
    return given.get("train", given.get("training", True)) is not False and bool(given.get("p", 1) != 0)


def is_movement(node: fx.Node) -> bool:
    """A view, copy, cast or other rearrangement of one tensor."""
    operator = operator_of(node)
    return (
        operator is not None
        and operator.category.within(MOVEMENT)
        and operator.terms == (0,)
        and isinstance(node.args[0], fx.Node)
    )


def row_map(node: fx.Node) -> LinearMap | None:
    """How the node maps the last axis of a value by weights, None if it is no such map."""
    operator = operator_of(node)
    maps = operator.maps if operator is not None else ()
    return next((each for each in maps if not each.spatial and each.fits(node)), None)


def is_continuous(value: Any) -> bool:
    """Whether this is a tensor of real or complex numbers: what relevance can be carried by."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def is_float(node: fx.Node) -> bool:
    """Whether the node's value is a tensor of real or complex numbers (or a tuple holding one)."""
    value = node.meta.get("val")
    return any(map(is_continuous, value if isinstance(value, (tuple, list)) else (value,)))
