"""The graphs that patterns are looked for as, folded and canonicalised as models are, and the search for them."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import fx

from fxlrp.errors import PatternError
from fxlrp.patterns.fold_activations import folded
from fxlrp.patterns.language import PART, PATTERNS, Pattern
from fxlrp.patterns.matcher import Form, Match, NearMiss, attempts

#: The forms made so far, with the activations that they were folded by.
_FORMS: WeakKeyDictionary[Pattern, tuple[tuple[Pattern, ...], Form]] = WeakKeyDictionary()


def form_of(pattern: Pattern) -> Form:
    """The pattern with the activations in it folded, but for one that is an activation itself.

    Raises :class:`PatternError` where a part lies inside of an activation: no captured model has it.
    """
    known = tuple(PATTERNS.get("activation", ())) if pattern.slope is None else ()
    found = _FORMS.get(pattern)
    if found is None or found[0] != known:
        graph = folded(pattern.written)[0] if known else pattern.written
        left = {str(node.args[1]) for node in graph.nodes if node.target is PART}
        if hidden := sorted(pattern.parts - left):
            raise PatternError(
                f"The part '{hidden[0]}' of the pattern {pattern.spelled} lies inside of an activation, which is one "
                "operator in every captured graph. Label the activation's argument or its result."
            )
        found = _FORMS[pattern] = known, Form(pattern, graph)
    return found[1]


def graph_of(pattern: Pattern) -> fx.Graph:
    """The canonical graph that is looked for, with the markers of the language in it."""
    return form_of(pattern).graph


def find(
    graph: fx.Graph, patterns: Mapping[str, list[Pattern]] | None = None, inside: frozenset[fx.Node] = frozenset()
) -> tuple[list[Match], list[NearMiss]]:
    """All matches, outermost (nearest the output) first, and the best attempt of each pattern that matched nowhere,
    the most complete first. Of the functions of one name that comes with fxlrp, only the best counts.

    ``inside`` are the nodes that depend on what is explained in the model's inputs, not on sizes or masks alone.
    """
    groups = (PATTERNS if patterns is None else patterns).values()
    matches, misses = attempts(graph, [form_of(each) for group in groups for each in group], inside)
    told = {match.pattern.name for match in matches}
    best: list[NearMiss] = []
    for miss in misses:
        if miss.pattern.name not in told or not miss.pattern.packaged:
            best.append(miss)
            told.add(miss.pattern.name)
    return matches, best
