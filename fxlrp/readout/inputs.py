"""Reads relevance at the inputs, the usual answer."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxlrp.errors import RulesetError
from fxlrp.graph.embedding import embedding_module
from fxlrp.readout.passes import Carried, Propagated, Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.readout.soundness import check_sums
from fxlrp.rules.rule import Message
from fxlrp.spec.readings import FeatureReading, InputReading

#: The labels of what blocks are made of.
BLOCKS = frozenset({"attention", "residual"})


@reader(InputReading)
def at_inputs(task: Task, reading: InputReading) -> Answer:
    """Relevance (or the gradient) of every attributed value, tokens reduced over their features."""
    places = embedded(task) if reading.at == "embeddings" else {}
    propagated = task.propagate((*task.taps, *places.values()))
    behind = dict(zip(places, propagated.taps[len(task.taps) :], strict=True))
    carried = [behind.get(index, own) for index, own in enumerate(propagated.attributed)]
    return by_input(task, reading, propagated, [score(each, reading.score) for each in carried])


def embedded(task: Task) -> dict[int, fx.Node]:
    """For each attributed look-up, by its place among the attributed values, what the module that embeds gives.

    A look-up that stands in no module of its own stays as it is, and so does a float input.
    """
    structure = task.captured.structure
    blocks = [node for node, labels in structure.labels.items() if not BLOCKS.isdisjoint(labels)]
    found: dict[int, fx.Node] = {}
    for index, each in enumerate(structure.attributed):
        module = embedding_module(each.node, blocks) if each.lookup else None
        if module is not None:
            *_, node = task.lrp.taps(task.captured, [module]).values()
            if node not in found.values():
                found[index] = node
    return found


def by_input(task: Task, reading: FeatureReading, propagated: Propagated, scores: list[Tensor]) -> Answer:
    """Scores of the attributed values as an answer by input name.

    A row that is looked up belongs to the entries of the input that its number is made of; look-ups of one input are
    added up, those of other widths beside them.
    """
    features: dict[str, Tensor] = {}
    lookups: dict[str, bool] = {}
    for each, own in zip(task.captured.structure.attributed, scores, strict=True):
        for name, score in task.by_entry(each, own):
            if name not in features:
                features[name], lookups[name] = score, each.lookup
            elif each.lookup and not lookups[name]:  # ids among numbers
                features[name] = features[name] + score.sum(-1)
            else:
                features[name] = _together(features[name], score)
    summed = {name: _reduced(score, reading, lookups[name]) for name, score in features.items()}
    for name in (each for each, lookup in lookups.items() if lookup and reading.reduce == "sum"):
        check_sums(task, features[name], summed[name])
    return Answer(summed, features, propagated)


def _together(features: Tensor, more: Tensor) -> Tensor:
    """The sum of features of the same shape; others side by side."""
    return features + more if features.shape == more.shape else torch.cat([features, more], -1)


def score(carried: Carried, wanted: str) -> Tensor:
    """The ``relevance`` or the ``gradient`` of a value. Raises :class:`RulesetError` where none arrives."""
    if wanted == "relevance":
        return carried.relevance
    if carried.kind is Message.RELEVANCE:
        raise RulesetError("This ruleset hands on relevance, so there is no gradient to read: use score='relevance'.")
    return carried.message


def _reduced(score: Tensor, reading: FeatureReading, lookup: bool) -> Tensor:
    if lookup and reading.reduce == "norm":
        return score.norm(dim=-1)
    reduced = {"l1": score.abs(), "squared": score * score}.get(reading.reduce, score)
    if lookup:
        return reduced.sum(-1)
    return reduced.sum(1) if reading.channels == "reduce" and score.ndim == 4 else reduced
