"""Which operations of a kind come first, and last, on the ways that relevance takes through a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

Kinds = Mapping[fx.Node, frozenset[str]]


@dataclass(frozen=True)
class Ends:
    """For each node, of which of its kinds it is a first (last) one: no way from an input to it (from it to an
    output) leads through another of that kind. Where ways branch there may be several.
    """

    first: Kinds = field(default_factory=dict)
    last: Kinds = field(default_factory=dict)

    @staticmethod
    def of(kinds: Kinds, sources: Callable[[fx.Node], Iterable[fx.Node]]) -> Ends:
        """Over the nodes of ``kinds``, given in the order of the graph; ``sources`` are those that feed a node."""
        users: dict[fx.Node, list[fx.Node]] = {node: [] for node in kinds}
        for node in kinds:
            for source in sources(node):
                if source in users:
                    users[source].append(node)
        return Ends(foremost(kinds, sources), foremost(dict(reversed(list(kinds.items()))), users.__getitem__))

    def at(self, node: fx.Node) -> tuple[frozenset[str], frozenset[str]]:
        """The kinds of which a node is first, and last."""
        return self.first.get(node, frozenset()), self.last.get(node, frozenset())


def foremost(kinds: Kinds, before: Callable[[fx.Node], Iterable[fx.Node]]) -> Kinds:
    """For each node, those of its kinds that no node has on a way ``before`` it."""
    met: dict[fx.Node, frozenset[str]] = {}
    found: dict[fx.Node, frozenset[str]] = {}
    for node, own in kinds.items():
        earlier = frozenset[str]().union(*(met.get(other, frozenset()) for other in before(node)))
        found[node], met[node] = own - earlier, own | earlier
    return found
