"""What a captured program is made of, whatever the ruleset: patterns, skip connections, initial states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fxlrp.capture import Program
from fxlrp.capture.attributed import Attributed
from fxlrp.graph.linear_sums import initial_states
from fxlrp.graph.live import dependent, reached
from fxlrp.graph.residual import skip_connections
from fxlrp.graph.rounding import STEP, steps
from fxlrp.patterns import PATTERNS, Match, NearMiss, find


@dataclass(frozen=True)
class Structure:
    """What a program is made of, whatever the ruleset: its matches, skip connections and input-dependent values."""

    matches: tuple[Match, ...]
    misses: tuple[NearMiss, ...]
    labels: Mapping[fx.Node, tuple[str, ...]]
    dependent: frozenset[fx.Node]
    attributed: tuple[Attributed, ...]
    skips: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    states: frozenset[fx.Node] = frozenset()

    @property
    def forks(self) -> frozenset[fx.Node]:
        """Where skip connections begin; ``skips`` has it for each sum that ends one."""
        return frozenset(self.skips.values())

    @staticmethod
    def of(program: Program, attributed: tuple[Attributed, ...]) -> Structure:
        """Collect the labels of every node: parts of patterns, then patterns, skip connections, steps of grids."""
        inside = dependent(program.graph, (program.placeholders[name] for name in program.inputs))
        # Spelled-out activations have been folded into single operators by now.
        structures = {name: group for name, group in PATTERNS.items() if name != "activation"}
        carried = reached(program.graph, (each.node for each in attributed))
        matches, misses = find(program.graph, structures, carried)
        labels: dict[fx.Node, tuple[str, ...]] = {}
        for match in matches:
            name = match.pattern.name
            for part, node in match.parts.items():
                labels[node] = (f"{name}.{part}", *labels.get(node, ()))
            for node in match.nodes:
                labels[node] = (*labels.get(node, ()), name)
        # A mask that every layer adds is no skip connection, though what it masks depends on it.
        skips = dict(skip_connections(program.graph, carried))
        for node in skips:
            labels[node] = (*labels.get(node, ()), "residual")
        for node in steps(program.graph, carried):
            labels[node] = (STEP, *labels.get(node, ()))
        beginnings = [match.inputs[name] for match in matches for name in match.pattern.carried]
        states = initial_states(program.graph, program.inputs, beginnings)
        return Structure(tuple(matches), tuple(misses), labels, inside, attributed, skips, states)
