"""Inputs of a model with the values of what is attributed: where passes are made, and what inputs are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.program import flatten
from fxlrp.engine.conversion import Conversion
from fxlrp.engine.graphs import Captured
from fxlrp.errors import InputError, nearest
from fxlrp.graph.nodes import run
from fxlrp.rewrite import Rewritten


@dataclass(frozen=True)
class Point:
    """``given`` inputs and the ``values`` of the attributed nodes there: float inputs, look-ups of ids."""

    captured: Captured
    given: Mapping[str, Any]
    values: tuple[Tensor, ...]

    @cached_property
    def by_node(self) -> dict[fx.Node, Tensor]:
        """The values by node of the canonical graph."""
        nodes = (each.node for each in self.captured.structure.attributed)
        return dict(zip(nodes, self.values, strict=True))

    def moved(self, values: tuple[Tensor, ...]) -> Point:
        """The same inputs with other values of what is attributed."""
        return replace(self, values=values)

    def zeros(self) -> Point:
        """The same inputs with zeros for what is attributed."""
        return self.moved(tuple(map(torch.zeros_like, self.values)))

    def leaves(self) -> dict[str, Tensor]:
        """The attributed float inputs, as leaves of a backward pass."""
        pairs = zip(self.captured.structure.attributed, self.values, strict=True)
        return {e.name: value.detach().clone().requires_grad_() for e, value in pairs if not e.lookup}

    def arguments(self, rewritten: Rewritten) -> dict[str, Any]:
        """Everything that a rewritten module takes of its reference inputs."""
        leaves, program = flatten(self.given), self.captured.program
        return {
            name: self.by_node[node]
            if node in self.by_node
            else program.taken(leaves[program.inputs[str(node.target)]])
            for name, node in rewritten.references.items()
        }


def point_of(lrp: Conversion, captured: Captured, given: Mapping[str, Any]) -> Point:
    """``given`` inputs with the values that the model makes of them."""
    program, structure = captured.program, captured.structure
    wanted = [each.node for each in structure.attributed]
    values = run(program.graph, program.arguments(lrp.model, given), wanted)
    return Point(captured, given, tuple(values[node].detach() for node in wanted))


def reference_point(
    lrp: Conversion, captured: Captured, given: Mapping[str, Any], reference: Mapping[str, Any]
) -> Point:
    """The user's reference inputs, completed by the given ones; a single sample stands for the whole batch.

    Raises :class:`InputError` for names, shapes and types that are not those of the inputs, and where the graph does
    not stand for the model on the reference.
    """
    merged = dict(given)
    for name, value in reference.items():
        if name not in given:
            raise InputError(
                f"The reference holds an input '{name}' that the inputs do not have.{nearest(name, given)}"
            )
        merged[name] = _like(name, value, given[name])
    if not captured.program.accepts(lrp.model, merged):
        raise InputError(
            f"{type(lrp.model).__name__} takes another branch on the reference than on the inputs, so that one graph "
            "cannot stand for both. Choose a reference on which it takes the same branches."
        )
    return point_of(lrp, captured, merged)


def _like(name: str, value: Any, given: Any) -> Any:
    if not isinstance(given, Tensor):
        return value
    if not isinstance(value, Tensor) or value.dtype != given.dtype:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"The reference for '{name}' must be a tensor of {given.dtype} as the input is, not {kind}.")
    if value.shape != given.shape and value.shape != (1, *given.shape[1:]):
        raise InputError(
            f"The reference for '{name}' has shape {tuple(value.shape)}, the input {tuple(given.shape)}: they must be "
            "equal, or the reference one sample for the whole batch."
        )
    return value.expand(given.shape).to(given.device)
