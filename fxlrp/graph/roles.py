"""What a value is for, by what is computed from it: a divisor of other values, or a prediction that is returned."""

from __future__ import annotations

from collections.abc import Container

from torch import fx

from fxlrp.graph.operators import Dependence, is_movement, nodes_in, operator_of


def divides(node: fx.Node, inside: Container[fx.Node]) -> bool:
    """Whether all that is made of a value are products with other values that are ``inside`` (depend on the input).

    It may be moved and scaled on its way there, as the reciprocal root of a variance is.
    """
    return bool(node.users) and all(_is_divided(user, inside) for user in node.users)


def _is_divided(user: fx.Node, inside: Container[fx.Node]) -> bool:
    known = operator_of(user)
    if known is None:
        return False
    if known.dependence is Dependence.FACTORS and sum(n in inside for n in nodes_in(user, known.factors)) > 1:
        return True
    return (is_movement(user) or _scales_by_constants(user, inside)) and divides(user, inside)


def predicts(node: fx.Node, inside: Container[fx.Node]) -> bool:
    """Whether nothing but outputs are made of a value, entry by entry: moved, chosen, scaled by constants, averaged, a
    function of each entry, or a softmax once more.
    """
    return bool(node.users) and all(user.op == "output" or _keeps(user, inside) for user in node.users)


#: Operations that a prediction may pass on its way out.
_KEPT = frozenset({Dependence.TERMS, Dependence.ACTIVATION, Dependence.HOMOGENEOUS, Dependence.SOFTMAX})


def _keeps(user: fx.Node, inside: Container[fx.Node]) -> bool:
    known = operator_of(user)
    if known is None:
        return False
    if known.dependence is Dependence.CONSTANT:  # the largest class, a threshold: no relevance flows there
        return True
    return (known.dependence in _KEPT or _scales_by_constants(user, inside)) and predicts(user, inside)


def _scales_by_constants(user: fx.Node, inside: Container[fx.Node]) -> bool:
    known = operator_of(user)
    if known is None or not known.scales:
        return False
    live = [n in inside for n in nodes_in(user, known.factors)]
    first = nodes_in(user, known.factors[:1])
    return sum(live) == 1 and (known.dependence is Dependence.FACTORS or any(n in inside for n in first))
