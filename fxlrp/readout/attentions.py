"""The attentions of a model and what a pass leaves at their weights: values, relevance, plain gradient.

In: a task. Out: one :class:`Map` an attention, in the order of the graph, and which tokens the input is made into.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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
from fxlrp.readout.passes import Carried, Propagated, Task

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


#: Which of the attentions, up to the last that the explained output depends on, are read.
Choice = Callable[[Sequence[AttentionSite]], Sequence[AttentionSite]]


@dataclass(frozen=True)
class Read:
    """The attentions of a model: all, or up to the last that the explained output depends on; the maps of those that
    were chosen; and that of the last of all, where its gradient was wanted.
    """

    sites: Sequence[AttentionSite]
    maps: Sequence[Map]
    last: Map | None
    propagated: Propagated


def attention_maps(
    task: Task, *, relevance: bool, gradient: bool, reached: bool = False, choose: Choice = tuple
) -> Read:
    """The attentions that are chosen. Relevance takes a backward pass, gradients one through the model as it is; with
    neither (and no module's relevance asked for) there is but a forward pass. No pass goes further back than to these.

    ``reached`` wants at least the gradient of the last attention that the explained output depends on, which takes a
    backward pass to there; what comes after it is left out. Raises :class:`ReadingError` where it depends on none.
    """
    found: Sequence[AttentionSite] = sites(task)
    plain = None
    if reached:
        found, plain = _up_to_reached(task, found, choose, gradient)
    chosen = choose(found)
    nodes = tuple(site.weights for site in chosen)
    if gradient and plain is None:
        plain = Pass.of(nodes, task.propagate(nodes, task.lrp.plain, inputs=False))
    carried = None
    if relevance or task.taps:
        carried = Pass.of((*task.taps, *nodes), task.propagate((*task.taps, *nodes), inputs=False))
    seen = carried or plain or Pass.of(nodes, task.observe(nodes))
    batch = len(seen.propagated.explained)

    def own_heads(x: Tensor, site: AttentionSite) -> Tensor:
        # Half precision, and a softmax in less precision than the model's, are no reason to multiply maps in it.
        x = widened(x)
        return by_head(x.to(torch.promote_types(x.dtype, task.lrp.dtype)), batch, site.place)

    def seen_at(site: AttentionSite, values: Pass, relevances: Pass | None, gradients: Pass | None) -> Map:
        node = site.weights
        return Map(
            site,
            own_heads(values[node].value, site),
            own_heads(relevances[node].relevance, site) if relevances else None,
            own_heads(gradients[node].message, site) if gradients else None,
        )

    maps = [seen_at(site, seen, carried, plain if gradient else None) for site in chosen]
    last = seen_at(found[-1], plain, None, plain) if reached and plain else None
    return Read(found, maps, last, seen.propagated)


@dataclass(frozen=True)
class Pass:
    """What a pass left at the nodes it was asked for."""

    at: Mapping[fx.Node, Carried]
    propagated: Propagated

    @staticmethod
    def of(nodes: Sequence[fx.Node], propagated: Propagated) -> Pass:
        """A pass that was asked for these ``nodes``, in their order."""
        return Pass(dict(zip(nodes, propagated.taps, strict=True)), propagated)

    def __getitem__(self, node: fx.Node) -> Carried:
        return self.at[node]


def _up_to_reached(
    task: Task, found: Sequence[AttentionSite], choose: Choice, gradient: bool
) -> tuple[Sequence[AttentionSite], Pass]:
    """The attentions up to the last that the explained output depends on, with a plain pass that is recorded back to
    it, or for the ``gradient`` back to those chosen.
    """
    for count in range(len(found), 0, -1):
        last = found[count - 1].weights
        nodes = tuple(dict.fromkeys((*(site.weights for site in choose(found[:count])), last)))
        if gradient:
            plain = task.propagate(nodes, task.lrp.plain, inputs=False)
            if bool(plain.taps[nodes.index(last)].message.any()):
                return found[:count], Pass.of(nodes, plain)
        elif (behind := task.behind(nodes, last)) is not None:
            return found[:count], Pass.of(nodes, behind)
    raise ReadingError(
        "The explained output depends on no attention of the model, so there is no row of attention to read. "
        "Explain another output, or name a row: override(readout={'row': 0})."
    )


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
