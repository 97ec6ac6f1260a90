"""Reads a row of the product of attention maps: rollout, its relevance-weighted forms, layer-wise attention tracing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.errors import InputError, ReadingError, warn
from fxlrp.readout.attentions import AttentionSite, Map, attention_maps, given_tokens, made_of, rows_read
from fxlrp.readout.passes import Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.readout.streams import steps
from fxlrp.readout.visible import visible
from fxlrp.rules.primitives import ratio
from fxlrp.spec.readings import AttentionReading


@reader(AttentionReading)
def by_attention(task: Task, reading: AttentionReading) -> Answer:
    """The row that ``reading`` asks for: [batch, tokens], or [batch, patches] of those that the input is made into."""
    gradient = reading.matrix.startswith("gradient") or reading.heads.startswith("gradient")
    found = attention_maps(
        task,
        relevance="relevance" in reading.matrix,
        gradient=gradient,
        reached=reading.row == "target",
        choose=lambda sites: _layers(sites, reading),
    )
    chosen = found.maps
    _same_tokens(chosen)
    _one_stream(task, chosen)
    name, start = task.main_input, rows_read(found.last or chosen[-1], reading.row)
    _warn(start)
    kept = torch.ones_like(start[0], dtype=torch.bool)
    if reading.tokens == "input":
        kept = made_of(task, task.nodes_of(name), found.sites[0])
    rows = start[:, None] if reading.row_token == "keep" else _apart(start)
    seen = _visible(task, chosen, reading)
    reached = _reached(rows, seen, reading)
    weights = [_of_heads(m, reading, rows.sum(1), v, reached.any(1), kept) for m, v in zip(chosen, seen, strict=True)]
    row = _own_entries(_product(chosen, reading, rows, weights), reading, rows, reached).sum(1)
    row = _rescaled(row, kept & reached.any(1)) if reading.rescale else row
    row = given_tokens(task, name, row, kept)
    return Answer({name: row}, {name: row}, found.propagated)


def _warn(start: Tensor) -> None:
    """Say of which samples no row is read: the way from the last attention to their outputs is shut (by a ReLU)."""
    none = [str(i) for i, rows in enumerate(start) if not bool(rows.any())]
    if none:
        warn(
            f"The explained output of sample {', '.join(none)} has no gradient at the last attention, so that no row "
            "of it is read: relevance is zero there. Explain another output, or override(readout={'row': 0})."
        )


def _layers(sites: Sequence[AttentionSite], reading: AttentionReading) -> Sequence[AttentionSite]:
    count = len(sites)
    for name, bound in (("start_layer", reading.start_layer), ("end_layer", reading.end_layer)):
        if bound is not None and not -count <= bound <= count - (name == "start_layer"):
            raise InputError(
                f"{name}={bound} is out of range: there are {count} layers of attention (0 to {count - 1}, "
                "or negative from the end)."
            )
    chosen = sites[reading.start_layer : reading.end_layer]
    if not chosen:
        raise InputError(
            f"start_layer={reading.start_layer} and end_layer={reading.end_layer} leave none of {count} layers of "
            "attention."
        )
    return chosen


def _same_tokens(maps: Sequence[Map]) -> None:
    """Raise :class:`ReadingError` unless all maps are square and of one size, so that their product has a meaning."""
    size = maps[0].weights.shape[-1]
    for found in maps:
        if found.weights.shape[-2:] != (size, size):
            rows, columns = found.weights.shape[-2:]
            raise ReadingError(
                f"The attention of '{found.place}' is {rows} x {columns}, that of '{maps[0].place}' "
                f"{maps[0].weights.shape[-2]} x {size}: only self-attention over the same tokens in every layer can be "
                "multiplied. For cross-attention use 'chefer2021-generic'."
            )


def _one_stream(task: Task, maps: Sequence[Map]) -> None:
    """Raise :class:`ReadingError` unless all maps are of one stream of tokens to itself: maps between others may have
    the same sizes, but their product has no meaning.
    """
    read = {each.site for each in maps}
    found = [step for step in steps(task) if step.site in read]
    own = found[0].queries
    other = next((step for step in found if step.keys is not own or step.queries is not own), None)
    if other is not None:
        raise ReadingError(
            f"The attention of '{other.site.place}' is not of the same tokens as that of '{found[0].site.place}': only "
            "self-attention over the same tokens in every layer can be multiplied. For several streams of tokens use "
            "'chefer2021-generic'."
        )


def layer_matrix(found: Map, reading: AttentionReading, weights: Tensor | None = None) -> Tensor:
    """The matrix of one layer, [batch, heads, tokens, tokens] for 'each' head, else its mean [batch, 1, ...];
    ``weights`` [batch, heads, 1, 1] are those of heads, if these are weighed.
    """
    score = found.score(reading.matrix)
    if weights is not None:
        score = (weights * score).mean(1, keepdim=True).clamp(min=0)
    else:
        score = score.clamp(min=0) if reading.positive else score
        score = score if reading.heads == "each" else score.mean(1, keepdim=True)
    if reading.identity:
        score = score + torch.eye(score.shape[-1], dtype=score.dtype, device=score.device)
    return score / score.sum(-1, keepdim=True) if reading.normalise else score


def _visible(task: Task, maps: Sequence[Map], reading: AttentionReading) -> list[Tensor]:
    """What the rows of every layer see, [batch, queries, keys]; everything, where the reading does not ask."""
    if reading.heads.startswith("gradient") or reading.row_token == "minimum" or reading.rescale:
        return visible(task, maps)
    return [torch.ones_like(found.weights[:, 0], dtype=torch.bool) for found in maps]


def _reached(rows: Tensor, seen: Sequence[Tensor], reading: AttentionReading) -> Tensor:
    """Which tokens each of the ``rows`` [batch, rows, tokens] sees through all layers, its own among them: bool, of the
    same shape.
    """
    found = rows > 0
    for each in reversed(seen):
        own = torch.eye(each.shape[-1], dtype=torch.bool, device=each.device) & reading.identity
        found = found.float() @ (each | own).float() > 0
    return found | (rows > 0)


def _product(maps: Sequence[Map], reading: AttentionReading, rows: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    """``rows`` [batch, rows, tokens] times the product of the layers' matrices, ``weights`` being those of heads."""
    product = rows[:, None]
    for found, of_heads in zip(reversed(maps), reversed(weights), strict=True):
        product = product @ layer_matrix(found, reading, of_heads)
    return product.sum(1)


def _apart(start: Tensor) -> Tensor:
    """The rows that are read, each by itself: [batch, rows, tokens] whose sum over rows is ``start``."""
    places = start.topk(max(1, int((start > 0).sum(-1).max())), -1).indices
    return torch.diag_embed(start).gather(1, places[..., None].expand(-1, -1, start.shape[-1]))


def _of_heads(
    found: Map, reading: AttentionReading, start: Tensor, seen: Tensor, tokens: Tensor, kept: Tensor
) -> Tensor | None:
    """One weight a head, the mean of its gradient over what is seen (``seen`` [batch, queries, keys]): by the rows that
    are read (``start``) of the tokens ``kept``, or by all rows of ``tokens``.
    """
    if not reading.heads.startswith("gradient"):
        return None
    assert found.gradient is not None
    if reading.heads == "gradient_row":
        entries = (seen & kept).to(start)
        shares = start[..., None] * entries / entries.sum(-1, keepdim=True).clamp(min=1)
    else:
        entries = (seen & tokens[..., None]).to(start)
        shares = entries / entries.sum((-1, -2), keepdim=True).clamp(min=1)
    return torch.einsum("bhqk,bqk->bh", found.gradient, shares)[..., None, None]


def _own_entries(product: Tensor, reading: AttentionReading, rows: Tensor, reached: Tensor) -> Tensor:
    """Rows [batch, rows, tokens] with 0, or the smallest entry of what they reach, in place of their own tokens'."""
    if reading.row_token == "keep":
        return product
    least = product.masked_fill(~reached, torch.inf).amin(-1, keepdim=True)
    return torch.where(rows > 0, least if reading.row_token == "minimum" else torch.zeros_like(least), product)


def _rescaled(row: Tensor, counted: Tensor) -> Tensor:
    """(row - minimum) / (maximum - minimum) of the entries that count, 0 elsewhere and where all are the same."""
    low = row.masked_fill(~counted, torch.inf).amin(-1, keepdim=True)
    high = row.masked_fill(~counted, -torch.inf).amax(-1, keepdim=True)
    return ratio(row - low, (high - low).expand_as(row)).masked_fill(~counted, 0.0)
