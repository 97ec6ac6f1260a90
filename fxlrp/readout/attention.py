"""Reads a row of the product of attention maps: rollout, its relevance-weighted forms, layer-wise attention tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxlrp.errors import InputError
from fxlrp.graph.view import module_path
from fxlrp.readings import AttentionReading
from fxlrp.readout.answer import Answer, reader
from fxlrp.readout.task import Propagated, Task

WEIGHTS = "attention.weights"


@dataclass(frozen=True)
class Map:
    """One layer's attention [batch, heads, queries, keys]: weights, their relevance, and their plain gradient."""

    place: str
    weights: Tensor
    relevance: Tensor
    gradient: Tensor | None = None


@reader(AttentionReading)
def by_attention(task: Task, reading: AttentionReading) -> Answer:
    """The row that ``reading`` asks for: [batch, tokens], without the row's own token if it is dropped."""
    maps, propagated = attention_maps(task, gradients="gradient" in (reading.matrix.split("_")[0], reading.heads))
    chosen = maps[reading.start_layer :]
    if not chosen:
        raise InputError(f"start_layer={reading.start_layer} leaves none of {len(maps)} layers of attention.")
    _same_tokens(chosen)
    row = _row(chosen, reading)
    name = task.main_input
    return Answer({name: row}, {name: row}, propagated)


def attention_maps(task: Task, gradients: bool) -> tuple[list[Map], Propagated]:
    """Every layer's attention in the order of the graph; gradients come from the model as it is, in a second pass.

    Raises :class:`InputError` for a model without attention.
    """
    nodes = _weights(task)
    if not nodes:
        raise InputError(
            f"{type(task.lrp.model).__name__} has no attention that the pattern 'attention' recognises, and the "
            f"reading of '{task.lrp.ruleset.name}' needs its weights."
        )
    propagated = task.propagate((*task.taps, *nodes))
    carried = propagated.taps[len(task.taps) :]
    plain: Sequence[Tensor | None] = [None] * len(nodes)
    if gradients:
        plain = [c.message for c in task.propagate(nodes, task.lrp.with_ruleset("gradient")).taps]
    batch = len(propagated.explained)
    maps = [
        Map(
            module_path(node),
            _by_head(c.value, batch),
            _by_head(c.relevance, batch),
            None if g is None else _by_head(g, batch),
        )
        for node, c, g in zip(nodes, carried, plain, strict=True)
    ]
    return maps, propagated


def _weights(task: Task) -> list[fx.Node]:
    labels = task.captured.structure.labels
    return [node for node in task.captured.program.graph.nodes if WEIGHTS in labels.get(node, ())]


def _by_head(x: Tensor, batch: int) -> Tensor:
    """[batch, heads, queries, keys] from that or from [batch x heads, queries, keys]."""
    return x if x.ndim == 4 else x.reshape(batch, -1, *x.shape[-2:])


def _same_tokens(maps: Sequence[Map]) -> None:
    """Raise :class:`InputError` unless all maps are square and of one size, so that their product has a meaning."""
    size = maps[0].weights.shape[-1]
    for found in maps:
        if found.weights.shape[-2:] != (size, size):
            rows, columns = found.weights.shape[-2:]
            raise InputError(
                f"The attention of '{found.place}' is {rows} x {columns}, that of '{maps[0].place}' {size} x {size}: "
                "only self-attention over the same tokens in every layer can be multiplied. For cross-attention use "
                "'chefer2021-generic'."
            )


def layer_matrix(found: Map, reading: AttentionReading) -> Tensor:
    """The matrix of one layer, [batch, heads, tokens, tokens] for 'each' head, else its mean [batch, 1, ...]."""
    score = found.relevance if "relevance" in reading.matrix else found.weights
    if found.gradient is not None and reading.matrix.startswith("gradient"):
        score = score * found.gradient
    if found.gradient is not None and reading.heads == "gradient_mean":
        score = score * _pooled(found.gradient, reading)
    score = score.clamp(min=0) if reading.positive and reading.heads != "gradient_mean" else score
    score = score if reading.heads == "each" else score.mean(1, keepdim=True)
    if reading.identity:
        score = score + torch.eye(score.shape[-1], dtype=score.dtype, device=score.device)
    return score / score.sum(-1, keepdim=True) if reading.normalise else score


def _pooled(gradient: Tensor, reading: AttentionReading) -> Tensor:
    """One weight a head: the mean of its gradient, over the row that is read (less its own token) or over all rows."""
    if reading.row_token != "drop":
        return gradient.mean((-2, -1), keepdim=True)
    others = torch.arange(gradient.shape[-1], device=gradient.device) != reading.row
    return gradient[..., reading.row, others].mean(-1)[..., None, None]


def _row(maps: Sequence[Map], reading: AttentionReading) -> Tensor:
    first = maps[-1].weights
    batch, tokens = first.shape[0], first.shape[-1]
    row = torch.zeros(batch, 1, 1, tokens, dtype=first.dtype, device=first.device)
    row[..., reading.row] = 1
    for found in reversed(maps):
        row = row @ layer_matrix(found, reading)
    row = row.sum(1)[:, 0]
    row = row.clamp(min=0) if reading.positive and reading.heads == "gradient_mean" else row
    if reading.row_token == "drop":
        row = row[:, torch.arange(tokens, device=row.device) != reading.row]
    elif reading.row_token != "keep":
        own = torch.zeros(batch) if reading.row_token == "zero" else row.amin(-1)
        row = row.index_fill(1, torch.tensor([reading.row], device=row.device), 0.0)
        row[:, reading.row] = own.to(row)
    if reading.rescale:
        low, high = row.amin(-1, keepdim=True), row.amax(-1, keepdim=True)
        row = (row - low) / (high - low)
    return row
