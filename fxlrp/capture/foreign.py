"""Operators that other packages define, known by name: the tables learn of them when a graph holds one.

A graph that holds such an operator shows that its package is loaded; fxlrp loads none of them to know their operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import REPLACEMENTS
from fxlrp.graph.operator_classes import MATMUL
from fxlrp.graph.operators import OPERATORS, Dependence, Operator, packet, register


@dataclass(frozen=True)
class Foreign:
    """What an operator is to relevance, and its replacement, if any, made from its overload packet."""

    operator: Operator
    replacement: Callable[[Any], Callable[..., Any]] | None = None


#: By namespace and name, as ``torch.library`` has them.
FOREIGN: dict[str, Foreign] = {
    # The grouped product of experts where torch has no kernel for it.
    "transformers::grouped_mm_fallback": Foreign(Operator(Dependence.FACTORS, MATMUL, factors=(0, 1))),
}


def name_of(target: Any) -> str:
    """``namespace::name`` of an operator, '' for any other function."""
    return str(target.name()).split(".")[0] if isinstance(target, private.OpOverload) else ""


def introduce(graph: fx.Graph) -> None:
    """Tell the tables of operators about the foreign ones that ``graph`` holds."""
    for node in graph.nodes:
        known, target = FOREIGN.get(name_of(node.target)), packet(node.target)
        if known is None or target in OPERATORS:
            continue
        if known.replacement is not None:
            REPLACEMENTS[target] = known.replacement(target)
        register(target, known.operator)
