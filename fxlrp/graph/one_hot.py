"""Ids written out as rows of ones and zeros, whose product with a table takes the table's rows.

Such rows are a look-up where they meet what is stored; where they meet what is explained they only choose among it.
"""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor, fx

from fxlrp.graph.operators import nodes_in, operator_of


def written_out(x: Tensor, ids: Tensor) -> Tensor:
    """``x`` [..., classes], 1 at the class that ``ids`` [...] name, else 0: the spelling of all that is one-hot."""
    return x


def meets_stored(node: fx.Node, explained: Container[fx.Node]) -> bool:
    """Whether the first factors that a value meets, moved and added up, hold nothing else that is explained."""
    pending, seen = [node], {node}
    while pending:
        value = pending.pop()
        for user in value.users:
            operator = operator_of(user)
            if operator is None or user in seen:
                continue
            if any(n in explained for n in nodes_in(user, operator.factors) if n is not value):
                return False
            if not operator.factors and value in nodes_in(user, operator.terms):
                seen.add(user)
                pending.append(user)
    return True
