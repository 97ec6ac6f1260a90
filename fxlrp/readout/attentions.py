"""The attentions of a model and what a pass leaves at their weights: values, relevance, plain gradient.

In: a task. Out: one :class:`Map` an attention, in the order of the graph, and which tokens the input is made into.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.program import widened
from fxlrp.errors import InputError, ReadingError
from fxlrp.graph.axes import axis_of_features
from fxlrp.graph.live import between
from fxlrp.graph.nodes import module_path, run, source_line
from fxlrp.graph.operators import is_movement, nodes_in, operator_of
from fxlrp.patterns import Match
from fxlrp.patterns.structure import Structure
from fxlrp.readout.passes import Propagated, Task

ATTENTION = "attention"


@dataclass(frozen=True)
class AttentionSite:
    """Where a graph has attention: its weights A, the queries whose tokens are the rows of A, and the product A v.

    A is what v is multiplied with: the softmax, or what masks and divisions behind it leave.
    """

    scores: fx.Node
    weights: fx.Node
    output: fx.Node

    @property
    def queries(self) -> fx.Node:
        """The first factor of the scores."""
        return _factors(self.scores)[0]

    @property
    def place(self) -> str:
        """The module that the attention is in."""
        return module_path(self.weights)

    @property
    def mixed(self) -> fx.Node:
        """The first factor of the output: the weights, moved as the product takes them."""
        return _factors(self.output)[0]

    @property
    def values(self) -> fx.Node:
        """The second factor of the output, whose tokens are the columns of A."""
        return _factors(self.output)[-1]


def _factors(node: fx.Node) -> list[fx.Node]:
    operator = operator_of(node)
    assert operator is not None
    return nodes_in(node, operator.factors)


@dataclass(frozen=True)
class Map:
    """One attention [batch, heads, queries, keys]: weights and, where they were asked for, their relevance and their
    gradient in the model as it is.
    """

    site: AttentionSite
    weights: Tensor
    relevance: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def place(self) -> str:
        """The module that the attention is in."""
        return self.site.place

    def score(self, matrix: str) -> Tensor:
        """The matrix that a reading asks for: weights or relevance, by itself or times the gradient."""
        score = self.relevance if "relevance" in matrix else self.weights
        assert score is not None
        return score * self.gradient if self.gradient is not None and matrix.startswith("gradient") else score


def sites(task: Task) -> list[AttentionSite]:
    """Every attention of the captured program, in the order of the graph.

    Raises :class:`ReadingError` for a model without attention, and for rows of attention that are no tokens.
    """
    matches = [m for m in task.captured.structure.matches if m.pattern.name == ATTENTION]
    for match in matches:
        _check_layout(match)
    found = {site.weights: site for site in map(_site, matches)}
    if not found:
        near = nearest_attention(task.captured.structure)
        raise ReadingError(
            f"{type(task.lrp.model).__name__} has no attention that the pattern '{ATTENTION}' recognises, and the "
            f"reading of '{task.lrp.ruleset.name}' needs its weights.{near} Take a ruleset that reads relevance at the "
            "inputs, such as 'attnlrp'."
        )
    return [found[node] for node in task.captured.program.graph.nodes if node in found]


def _site(match: Match) -> AttentionSite:
    scores, weights, output = (match.parts[part] for part in ("scores", "weights", "output"))
    mixed = _factors(output)[0]
    moved = all(map(is_movement, between(weights, mixed)))
    return AttentionSite(scores, weights if moved else mixed, output)


def nearest_attention(structure: Structure) -> str:
    """The best attempt at an attention where none was found, as a sentence behind another; '' without any."""
    return next((f" {miss}." for miss in structure.misses if miss.pattern.name == ATTENTION), "")


def _check_layout(match: Match) -> None:
    """Raise :class:`ReadingError` unless the axes of weights are [..., queries, keys], as readers take them, and these
    are of tokens.
    """
    weights = match.parts["weights"]
    place = f"'{module_path(weights) or 'the top level'}' ({source_line(weights)})"
    if {-1, -2} & {*match.layouts.get("weights", ())}:
        raise ReadingError(
            f"The attention weights of {place} have their axes in another order than [..., queries, keys], in which "
            "they are read. Compute them in that order."
        )
    if axis_of_features(_factors(match.parts["scores"])[0]) == -2:
        raise ReadingError(
            f"The attention of {place} is among features (channels), not among tokens, so that its rows say nothing of "
            "tokens. Take a ruleset that reads relevance at the inputs, such as 'attnlrp'."
        )


def attention_maps(
    task: Task, *, relevance: bool, gradient: bool, reached: bool = False
) -> tuple[list[Map], Propagated]:
    """Every attention of the model. Relevance takes a backward pass, gradients one through the model as it is; with
    neither (and no module's relevance asked for) there is but a forward pass.

    ``reached`` wants at least the gradient of the last attention that the explained output depends on, which takes a
    backward pass to there; what comes after it is left out. Raises :class:`ReadingError` where it depends on none.
    """
    found = sites(task)
    nodes = tuple(site.weights for site in found)
    carried = task.propagate((*task.taps, *nodes)) if relevance or task.taps else None
    plain = task.propagate(nodes, task.lrp.plain) if gradient else None
    if reached:
        plain = _up_to_reached(plain) if plain is not None else _last_reached(task, nodes)
        if plain is None:
            raise ReadingError(
                "The explained output depends on no attention of the model, so there is no row of attention to read. "
                "Explain another output, or name a row: override(readout={'row': 0})."
            )
        found = found[: len(plain.taps)]
    seen = carried or plain or task.observe(nodes)
    batch = len(seen.explained)

    def own_heads(x: Tensor, site: AttentionSite) -> Tensor:
        # Half precision, and a softmax in less precision than the model's, are no reason to multiply maps in it.
        x = widened(x)
        return by_head(x.to(torch.promote_types(x.dtype, task.lrp.dtype)), batch, site.place)

    own = seen.taps[len(seen.taps) - len(nodes) :] if carried else seen.taps
    maps = [
        Map(
            site,
            own_heads(own[i].value, site),
            own_heads(carried.taps[i - len(nodes)].relevance, site) if carried else None,
            own_heads(plain.taps[i].message, site) if plain and (gradient or i == len(found) - 1) else None,
        )
        for i, site in enumerate(found)
    ]
    return maps, seen


def _up_to_reached(plain: Propagated) -> Propagated | None:
    """The pass without the taps behind the last that the explained output depends on."""
    count = next((i for i in range(len(plain.taps), 0, -1) if bool(plain.taps[i - 1].message.any())), 0)
    return replace(plain, taps=plain.taps[:count]) if count else None


def _last_reached(task: Task, nodes: Sequence[fx.Node]) -> Propagated | None:
    """A pass that is recorded from the last of the ``nodes`` on that the explained output depends on."""
    passes = (task.behind(nodes[:count], nodes[count - 1]) for count in range(len(nodes), 0, -1))
    return next((found for found in passes if found is not None), None)


def by_head(x: Tensor, batch: int, place: str) -> Tensor:
    """[batch, heads, queries, keys] from that, from [batch x heads, ...] or from heads in groups."""
    if len(x) % batch or (x.ndim > 3 and len(x) != batch):
        raise ReadingError(
            f"The attention of '{place}' has the shape {tuple(x.shape)} for {batch} samples: it is among parts of a "
            "sample (windows, frames, choices), so it has no matrix over all tokens."
        )
    return x if x.ndim == 4 else x.reshape(batch, -1, *x.shape[-2:])


def made_of(task: Task, attributed: Collection[fx.Node], site: AttentionSite) -> Tensor:
    """Which tokens of an attention's queries are made of the attributed values ``attributed``: bool [tokens].

    These are found by NaN: it is put in for the attributed, and the graph is computed up to the queries.
    """
    program = task.captured.program

    def marked(node: fx.Node, value: Any) -> Any:
        return torch.full_like(value, torch.nan) if node in attributed else value

    arguments = program.arguments(task.lrp.model, task.given)
    queries: Tensor = run(program.graph, arguments, [site.queries], marked)[site.queries]
    return queries.isnan().any(-1).flatten(0, -2).any(0)


def given_tokens(task: Task, name: str, row: Tensor, kept: Tensor) -> Tensor:
    """Of a row [batch, tokens] the tokens that the input ``name`` was made into, ``kept`` [tokens]: [batch, patches] of
    a float input; of ids all stay, with 0 where something else was written in their place.
    """
    return row.masked_fill(~kept, 0.0) if dict(task.attributed)[name] else row[:, kept]


def rows_read(found: Map, row: int | str) -> Tensor:
    """How much of each row of an attention is read, [batch, queries]: one row, or equal parts of those at which the
    gradient of the explained output arrives (``target``).
    """
    batch, _, count, _ = found.weights.shape
    if isinstance(row, int):
        if not -count <= row < count:
            raise InputError(f"row={row} is out of range: the attention of '{found.place}' has {count} rows.")
        chosen = torch.zeros(batch, count, dtype=found.weights.dtype, device=found.weights.device)
        chosen[:, row] = 1
        return chosen
    assert found.gradient is not None
    reached = (found.gradient != 0).any(-1).any(1).to(found.weights.dtype)
    return reached / reached.sum(-1, keepdim=True).clamp(min=1)
