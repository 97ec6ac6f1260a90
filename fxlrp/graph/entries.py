"""Which entries of an input are looked up where: the way of integers from an input to a table, followed backwards.

In: a look-up in a graph and the values of its arguments. Out: for each looked-up row the entries of the inputs that its
number is made of, as *layers*: integers in the shape of the looked-up numbers, each the number of an entry (counted
from 1 through all inputs) or 0. Slices, shifts, flips, gathers and stacks take entries along, arithmetic with numbers
leaves them in place; where one number is made of several entries (a hash), each is in a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.errors import InputError
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import ancestors, module_path, run, source_line, tensor_value
from fxlrp.graph.one_hot import written_out
from fxlrp.graph.operator_classes import INDEX, MOVEMENT, PRODUCT, SUM
from fxlrp.graph.operators import Move, Operator, is_float, nodes_in, operator_of, parameter_names
from fxlrp.graph.uses import made_of, taken_from


@dataclass(frozen=True)
class Entries:
    """Where the rows of one look-up come from: ``layers`` of entry numbers, of the inputs ``sources`` (placeholders,
    by the shapes of their values).
    """

    layers: tuple[Tensor, ...]
    sources: Mapping[fx.Node, torch.Size]

    def given_to(self, scores: Tensor) -> dict[fx.Node, Tensor]:
        """Scores of rows [..., features] as scores of entries [*shape of the input, features], for every input.

        What is made of several entries is shared evenly: nothing in a graph tells more.
        """
        width = scores.shape[-1]
        rows = scores.reshape(-1, width)
        total = sum(shape.numel() for shape in self.sources.values())
        made = torch.stack([(layer > 0).to(rows.dtype) for layer in self.layers]).sum(0).clamp_min(1)
        result = rows.new_zeros(total + 1, width)
        for layer in self.layers:
            result.index_add_(0, layer.reshape(-1), rows / made.reshape(-1, 1))
        parts = result[1:].split([shape.numel() for shape in self.sources.values()])
        return {n: part.view(*shape, width) for part, (n, shape) in zip(parts, self.sources.items(), strict=True)}

    @property
    def shared(self) -> bool:
        """Whether some row belongs to several entries together."""
        first = torch.stack(self.layers).amax(0)
        return any(bool(((layer > 0) & (layer != first)).any()) for layer in self.layers)

    @property
    def owned(self) -> Tensor:
        """Which rows are looked up for an entry of an input, and not for a number that the model put there."""
        return torch.stack([layer > 0 for layer in self.layers]).any(0)


def numbers_of(node: fx.Node) -> fx.Node | None:
    """The integers by which a node takes whole rows along the first axis of its first argument, or that it writes out
    as rows of ones and zeros; None if it does neither.
    """
    if node.target is written_out:
        return node.args[1] if isinstance(node.args[1], fx.Node) else None
    operator = operator_of(node)
    table = tensor_value(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if operator is None or not operator.indexed or table is None or table.ndim < 2:
        return None
    chosen: Any = node.args[-1]  # embedding(table, ids), index(table, [ids]), index_select(table, 0, ids)
    if operator.looks_up:
        chosen = node.args[1]
    elif isinstance(chosen, (list, tuple)):
        chosen = chosen[0] if len(chosen) == 1 else None
    elif not (operator.category == INDEX and node.args[1] == 0):
        return None
    value = tensor_value(chosen) if isinstance(chosen, fx.Node) else None
    return None if value is None or value.is_floating_point() or value.dtype == torch.bool else chosen


def sources_of(ids: fx.Node, inputs: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The inputs that the numbers of a look-up are made of, nearest first: integers, and what is no more than cut to
    integers; numbers that a model computes and rounds, as of a codebook, are its own.
    """
    made = made_of(ids)
    return tuple(node for node in made if node in inputs and (not is_float(node) or _is_cut(made, node)))


def _is_cut(made: Sequence[fx.Node], source: fx.Node) -> bool:
    """Whether what is ``made`` of a float input is its own entries, moved and shifted by numbers."""
    behind = dependent(source.graph, [source])
    return all(node is source or _keeps_entries(node) for node in made if node in behind and taken_from(node))


def _keeps_entries(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and (operator.entrywise or operator.rounds or _carries_along(operator))


def _carries_along(operator: Operator) -> bool:
    """Whether entries are taken along as they are: sliced, gathered, stacked."""
    return operator.copies and operator.category.within(MOVEMENT)


def in_place(ids: fx.Node, source: fx.Node) -> bool:
    """Whether every number stands where the entry of the input stands that it is made of."""
    operator = operator_of(ids)
    if ids is source:
        return True
    if operator is None or not (operator.entrywise or operator.move is Move.STAYS):
        return False
    behind = [n for n in nodes_in(ids, operator.factors + operator.terms) if source in made_of(n)]
    return len(behind) == 1 and _shape(behind[0]) == _shape(ids) and in_place(behind[0], source)


def entries_of(
    lookup: fx.Node, inputs: Sequence[fx.Node], arguments: Callable[[], Mapping[str, Any]]
) -> Entries | None:
    """Where the rows of a look-up come from; None where each stands in the place of its entry of its only input.

    Raises :class:`InputError` where that cannot be told.
    """
    ids = numbers_of(lookup)
    assert ids is not None
    sources = sources_of(ids, inputs)
    if len(sources) == 1 and in_place(ids, sources[0]):
        return None
    values = run(lookup.graph, arguments(), list(ancestors(ids)))
    numbers: dict[fx.Node, Tensor] = {}
    count = 1
    for source in sources:
        shape = values[source].shape
        numbers[source] = torch.arange(count, count + shape.numel(), device=values[source].device).view(shape)
        count += shape.numel()
    return Entries(tuple(_Layers(numbers, values).of(ids)), {source: values[source].shape for source in sources})


def _shape(node: fx.Node) -> str:
    value = tensor_value(node)
    return "" if value is None else str(tuple(value.shape))


class _Layers:
    """The layers of every value between the inputs and a look-up."""

    def __init__(self, numbers: Mapping[fx.Node, Tensor], values: Mapping[fx.Node, Any]) -> None:
        self.values = values
        self.known: dict[fx.Node, list[Any]] = {source: [own] for source, own in numbers.items()}

    def of(self, node: fx.Node) -> list[Any]:
        """The layers of a value; none where it is made of no entries."""
        if node not in self.known:
            self.known[node] = self._made(node)
        return self.known[node]

    def _made(self, node: fx.Node) -> list[Any]:
        operator = operator_of(node)
        if operator is None or operator.counts or operator.sized:
            return []
        slots = operator.factors + operator.terms
        operands = (nodes_in(node, slots) or node.all_input_nodes) if slots or operator.rounds else []
        owned = [n for n in dict.fromkeys(operands) if self.of(n)]
        if not owned:
            return []
        if operator.entrywise or operator.rounds:
            if operator.masks and len(owned) > 1:
                return self._moved(node, operands)
            # A number times another, or times a mask, is the number; a sum of several is made of all.
            owned = owned[:1] if operator.category == PRODUCT else owned
            shape = self.values[node].shape
            return [layer.expand(shape) for n in owned for layer in self.of(n)]
        if _carries_along(operator):
            return self._moved(node, operands)
        if operator.category == SUM and operator.reduces is not None:
            return self._summed(node, operator.reduces)
        raise InputError(
            f"What '{node.name}' in module '{module_path(node)}' ({source_line(node) or 'no source line'}) makes of "
            "ids before they are looked up cannot be followed back to single ids: their relevance cannot be told. "
            "Leave this input out (exclude=), or pass the looked-up values as a float input."
        )

    def _moved(self, node: fx.Node, operands: Sequence[fx.Node]) -> list[Any]:
        """The layers moved as the values are; what no input gave is 0."""
        function: Any = node.target
        result = []
        for index in range(max(len(self.of(n)) for n in operands)):
            layers = {n: self.of(n)[index] if index < len(self.of(n)) else _nothing(self.values[n]) for n in operands}
            args, kwargs = fx.map_arg((_without_fill(node), dict(node.kwargs)), {**self.values, **layers}.__getitem__)
            result.append(function(*args, **{key: 0 if key == "value" else value for key, value in kwargs.items()}))
        return result

    def _summed(self, node: fx.Node, slot: int) -> list[Any]:
        """The layers along the axes that are summed over, each a layer of its own."""
        axes: Any = node.args[slot] if slot < len(node.args) else None
        source: Any = node.args[0]
        shape = self.values[node].shape
        ndim = self.values[source].ndim
        axes = range(ndim) if axes is None else [axis % ndim for axis in (axes if isinstance(axes, list) else [axes])]
        apart = [layer.movedim(list(axes), list(range(len(axes)))) for layer in self.of(source)]
        return [part.reshape(shape) for layer in apart for part in layer.flatten(0, len(axes) - 1).unbind(0)]


def _nothing(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_nothing, value))
    return torch.zeros_like(value, dtype=torch.int64)


def _without_fill(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a movement that puts no number of its own into what it fills up."""
    fills = [i for i, name in enumerate(parameter_names(node.target)) if name == "value" and i < len(node.args)]
    return tuple(0 if i in fills else argument for i, argument in enumerate(node.args))
