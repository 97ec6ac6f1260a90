"""Reads relevance that attention moves between streams of tokens: encoder and decoder, image and text.

What is a stream, and which attention is self-attention, follows from the graph: rows and columns of an attention are
the same stream if they have one length and descend, token by token, from a common attributed value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxlrp.errors import InputError, ReadingError
from fxlrp.graph.nodes import module_path
from fxlrp.graph.tokens import Roots, descent
from fxlrp.readout.attentions import AttentionSite, Map, attention_maps, given_tokens, made_of, rows_read, sites
from fxlrp.readout.passes import Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.rules.primitives import ratio
from fxlrp.spec.readings import StreamsReading


@dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of tokens: the roots that they descend from and their number, as the graph knows it."""

    roots: Roots
    size: str
    entered: Roots

    def holds(self, roots: Roots, size: str, attributed: Iterable[fx.Node]) -> bool:
        """Whether tokens of these roots and this number are those of the stream: they share an attributed value or,
        where neither has one, a parameter.
        """
        entered = roots.intersection(attributed)
        common = self.entered & entered if self.entered or entered else self.roots & roots
        return bool(common) and size == self.size


@dataclass(frozen=True)
class Transfer:
    """One attention: the streams of its queries and keys, and the attentions that its keys have been through."""

    site: AttentionSite
    queries: Stream
    keys: Stream
    behind: frozenset[fx.Node]


def steps(task: Task) -> list[Transfer]:
    """Every attention of the model with the streams between which it moves relevance, in the order of the graph.

    Raises :class:`ReadingError` for keys made of the same tokens as the queries, but of another number (pooled keys).
    """
    graph, found = task.captured.program.graph, sites(task)
    attributed = [each.node for each in task.captured.structure.attributed]
    rows = {site.scores: site.queries for site in found} | {site.output: site.weights for site in found}
    roots = descent(graph, attributed, rows)
    behind = _attentions_behind(graph, found)
    streams: list[Stream] = []

    def stream(of: Roots, size: str) -> Stream:
        known = next((s for s in streams if s.holds(of, size, attributed)), None)
        if known is None:
            streams.append(known := Stream(of, size, of.intersection(attributed)))
        return known

    made = []
    for site in found:
        count = site.weights.meta["val"].shape
        queries = stream(roots[site.queries], str(count[-2]))
        keys = stream(roots[site.values], str(count[-1]))
        if queries is not keys and queries.entered and queries.entered == keys.entered:
            raise ReadingError(
                f"The attention of '{module_path(site.weights)}' is from {count[-2]} tokens to {count[-1]} that are "
                "made of the same input (pooled or extended keys): relevance between them is not defined. Take a "
                "ruleset that reads relevance at the inputs."
            )
        made.append(Transfer(site, queries, keys, behind[site.values]))
    return made


def _attentions_behind(graph: fx.Graph, found: Sequence[AttentionSite]) -> dict[fx.Node, frozenset[fx.Node]]:
    """For every value the weights of all attentions that it has been computed from."""
    weights = {site.weights for site in found}
    behind: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        own = frozenset({node}) if node in weights else frozenset[fx.Node]()
        behind[node] = own.union(*(behind[n] for n in node.all_input_nodes))
    return behind


@dataclass
class StreamRelevance:
    """The matrices R_st, by the attentions after which they hold: rows of stream s over the tokens of t."""

    rows: dict[Stream, list[tuple[fx.Node | None, dict[Stream, Tensor]]]] = field(default_factory=dict)

    def begin(self, stream: Stream, like: Tensor, count: int) -> None:
        """The identity for a stream not met before."""
        if stream not in self.rows:
            eye = torch.eye(count, dtype=like.dtype, device=like.device).expand(len(like), count, count)
            self.rows[stream] = [(None, {stream: eye})]

    def last(self, stream: Stream) -> dict[Stream, Tensor]:
        """The matrices of a stream now."""
        return self.rows[stream][-1][1]

    def before(self, stream: Stream, behind: frozenset[fx.Node]) -> dict[Stream, Tensor]:
        """The matrices of a stream as of the latest of the attentions ``behind``."""
        return next(made for place, made in reversed(self.rows[stream]) if place is None or place in behind)

    def move(self, step: Transfer, matrix: Tensor, normalise: bool) -> None:
        """One attention with matrix M [batch, queries, keys].

        Self: R_st += M R_st. Cross, from s to q: R_sq += N(R_ss)^T M N(R_qq), and R_st += M R_qt for every other t.
        """
        own, other = self.last(step.queries), self.before(step.keys, step.behind)
        added = {stream: matrix @ known for stream, known in other.items()}
        if step.queries is not step.keys:
            left, right = own[step.queries], other[step.keys]
            if normalise:
                left, right = normalised(left), normalised(right)
            added[step.keys] = left.mT @ matrix @ right
        new = own | {stream: own[stream] + more if stream in own else more for stream, more in added.items()}
        self.rows[step.queries].append((step.site.weights, new))


def normalised(relevance: Tensor) -> Tensor:
    """N(R): the identity plus R less the identity with rows divided by their sums; a row of zeros stays one."""
    eye = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    rest = relevance - eye
    return ratio(rest, rest.sum(-1, keepdim=True).expand_as(rest)) + eye


@reader(StreamsReading)
def by_streams(task: Task, reading: StreamsReading) -> Answer:
    """Relevance of the tokens of every attributed input, [batch, tokens], by input name."""
    found = steps(task)
    read = attention_maps(task, relevance="relevance" in reading.matrix, gradient=True)
    maps, propagated = read.maps, read.propagated
    state, chosen = StreamRelevance(), _chosen(found, reading.start_layer)
    for step, seen in zip(found, maps, strict=True):
        for stream, count in zip((step.queries, step.keys), seen.weights.shape[-2:], strict=True):
            state.begin(stream, seen.weights, count)
        if step in chosen:
            state.move(step, seen.score(reading.matrix).clamp(min=0).mean(1), reading.normalise)
    totals: dict[Stream, Tensor] = {}
    for stream, seen in _read(task, found, maps, task.explained_outputs(propagated)).items():
        start = rows_read(seen, reading.row)
        for other, matrix in state.last(stream).items():
            row = torch.einsum("bs,bst->bt", start, matrix)
            totals[other] = totals[other] + row if other in totals else row
    summed = _by_input(task, reading, found, totals)
    return Answer(summed, summed, propagated)


def _chosen(found: Sequence[Transfer], start: int) -> list[Transfer]:
    """The attentions of each stream from ``start`` on."""
    by_stream: dict[Stream, list[Transfer]] = {}
    for step in found:
        by_stream.setdefault(step.queries, []).append(step)
    longest = max(map(len, by_stream.values()))
    if not -longest <= start < longest:
        raise InputError(f"start_layer={start} is out of range: no stream has more than {longest} layers of attention.")
    return [step for group in by_stream.values() for step in group[start:]]


def _read(task: Task, found: Sequence[Transfer], maps: Sequence[Map], outputs: Sequence[fx.Node]) -> dict[Stream, Map]:
    """The streams that the explained outputs are computed from token by token, with the last attention of each; but
    none whose tokens became tokens of another of them (an image's, written among a text's).
    """
    graph, attributed = task.captured.program.graph, [e.node for e in task.captured.structure.attributed]
    rows = {s.site.scores: s.site.queries for s in found} | {s.site.output: s.site.weights for s in found}
    last = {step.queries: seen for step, seen in zip(found, maps, strict=True)}
    marked = descent(graph, [*attributed, *(seen.site.weights for seen in last.values())], rows)
    reached = frozenset[fx.Node]().union(*(marked.get(node, frozenset()) for node in outputs))
    read = {stream: seen for stream, seen in last.items() if seen.site.weights in reached}
    return {s: seen for s, seen in read.items() if not any(s.entered < other.entered for other in read)}


def _by_input(
    task: Task, reading: StreamsReading, found: Sequence[Transfer], totals: Mapping[Stream, Tensor]
) -> dict[str, Tensor]:
    """Relevance by the input that a stream's tokens are made of."""
    summed: dict[str, Tensor] = {}
    for name in dict(task.attributed):
        nodes = set(task.nodes_of(name))
        for stream, total in totals.items():
            if stream.entered & nodes:
                site = next((s.site for s in found if s.queries is stream), None)
                row = total
                if site is not None and reading.tokens == "input":
                    row = given_tokens(task, name, total, made_of(task, nodes, site))
                summed[name] = summed[name] + row if name in summed else row
    return summed
