"""Words are deleted in the order of their relevance, and the accuracy is watched.

In: batches of token ids with labels. Out: :class:`WordDeletion`, accuracies over the number of words that are gone, of
sentences that the model gets right and of those that it gets wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fxlrp.engine.targets import logits_of
from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Explanation, explain_class
from fxlrp.evaluate.figures import lines
from fxlrp.evaluate.groups import Grouped, words
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.evaluate.units import Tokens
from fxlrp.explain.model import ConvertedModel
from fxlrp.readout.inputs_at import point_of
from fxlrp.readout.passes import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = ("correct", "wrong")


@protocol
class WordDeletion(Protocol):
    """Accuracy when n words of a sentence are gone, for every n in ``counts``.

    The true class is explained. Where the model is right, words go in decreasing order of relevance, and its accuracy
    should fall; where it is wrong, in increasing order, so that those which speak most against the truth go first, and
    the accuracy should rise. ``order="random"`` (from ``seed``) deletes any, as a baseline.

    delete: ``"zero"`` sets the looked-up embedding of a word to zero; ``"drop"`` takes it out of the sequence, which
    needs an attention mask or samples of one length; an id takes its place. min_words: shorter sentences are left out.
    whole_words: delete words whole, not word pieces, which takes batches as a fast tokenizer encodes them. keep: ids of
    special tokens, which are no words.

    Source: Arras et al. 2017 (arXiv 1706.07206), section 4.3 (embeddings set to zero, up to 5 words, sentences of at
    least 10 words); Wu & Ong 2021 (arXiv 2101.00196), for BERT.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Word deletion",
        "Words are deleted one after the other: where the model was right, those that speak most for the truth, "
        "and it should go wrong; where it was wrong, those that speak most against it, and it should come right.",
    )

    counts: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    delete: int | Literal["zero", "drop"] = "zero"
    order: Literal["relevance", "random"] = "relevance"
    min_words: int = 10
    whole_words: bool = False
    keep: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 0 or list(self.counts) != sorted(set(self.counts)):
            raise InputError(f"counts={self.counts} must be numbers of words that rise from 0.")
        if self.counts[-1] > self.min_words:
            raise InputError(
                f"counts up to {self.counts[-1]} need sentences of as many words: min_words={self.min_words} is less."
            )

    def start(self, lrp: ConvertedModel) -> Measure:
        """``accuracy`` [samples, counts], ``correct`` [samples] on whole sentences, ``used`` [samples]: long enough."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        explanation = explain_class(lrp, batch, "label", self.keep, "WordDeletion")
        if not isinstance(explanation.units, Tokens):
            raise InputError("WordDeletion takes words out of texts; this model's main input does not hold token ids.")
        if self.whole_words:
            explanation = explanation.in_units(words(explanation.units, batch.inputs))
        seen = explanation.seen()
        correct = seen(explanation.logits(), "accuracy").bool()
        ranks = self._ranks(explanation, correct, batch)
        used = explanation.units.counts >= self.min_words
        accuracy = []
        for count in self.counts:
            gone = explanation.units.first(ranks, used * count)
            accuracy.append(seen(self._deleted(explanation, gone), "accuracy"))
        return {"accuracy": torch.stack(accuracy, 1), "correct": correct, "used": used}

    def _ranks(self, explanation: Explanation, correct: Tensor, batch: Batch) -> Tensor:
        units = explanation.units
        if self.order == "random":
            return units.ranks("random", drawing(batch, self.seed))
        return torch.where(correct[:, None], units.ranks("most"), units.ranks("least"))

    def _deleted(self, explanation: Explanation, gone: Tensor) -> Tensor:
        """The logits when the ``gone`` units are deleted."""
        if isinstance(self.delete, int):
            return explanation.logits(explanation.without(gone, self.delete))
        units = explanation.units
        tokens = units.members(gone) if isinstance(units, Grouped) else gone
        if self.delete == "zero":
            return _without_embeddings(explanation, tokens)
        return explanation.logits(dropped(explanation, tokens))

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Accuracies of both groups with n words gone (1 and 0 with none); NaN for a group without sentences."""
        chosen = _grouped(measured)
        return {
            f"{group} -{count}": value
            for group in GROUPS
            for count, value in zip(self.counts, chosen[group].mean(0).tolist(), strict=True)
            if count
        }

    def better(self) -> dict[str, int]:
        """Accuracy should fall where it was right, and rise where it was wrong."""
        if self.order == "random":
            return {}
        signs = zip(GROUPS, (-1, 1), strict=True)
        return {f"{group} -{count}": sign for group, sign in signs for count in self.counts if count}

    def draw(self, evaluation: Evaluation) -> Figure:
        """Both groups' accuracies over the number of words."""
        named = {
            f"{group}ly classified ({len(rows)})": rows
            for group, rows in _grouped(evaluation.measured).items()
            if len(rows)
        }
        return lines(self.counts, named, "words deleted", "accuracy", evaluation.ruleset.name)


def _grouped(measured: Measured) -> dict[str, Tensor]:
    """Accuracies [samples, counts] of the sentences used, by group."""
    used, correct = measured["used"], measured["correct"]
    return {"correct": measured["accuracy"][used & correct], "wrong": measured["accuracy"][used & ~correct]}


def _without_embeddings(explanation: Explanation, gone: Tensor) -> Tensor:
    """The logits with zeros for what the ``gone`` tokens [samples, tokens] look up."""
    task = Task(explanation.lrp.conversion, explanation.lrp.conversion.prepare(explanation.given))
    point = point_of(explanation.lrp.conversion, task.captured, explanation.given)
    nodes = task.nodes_of(explanation.units.name)
    values = {
        node: value.masked_fill(gone[..., None], 0) if node in nodes else value for node, value in point.by_node.items()
    }
    return logits_of(task.outputs(point.moved(tuple(values.values()))))


def dropped(explanation: Explanation, gone: Tensor) -> dict[str, Any]:
    """The inputs without the ``gone`` tokens [samples, tokens]: what is left moves together, on the side where it was.

    Inputs of the ids' shape lose the same places. Raises :class:`InputError` where samples of several lengths would
    be left and no attention mask tells them apart, and for positions, which would have gaps.
    """
    given, ids = explanation.given, explanation.units.value
    if "position_ids" in given:
        raise InputError("delete='drop' would leave gaps in position_ids; give none, so that the model counts anew.")
    mask = given.get("attention_mask")
    left = ~gone if mask is None else ~gone & mask.bool()
    lengths = left.sum(1)
    if int(lengths.min()) == 0:
        raise InputError("delete='drop' would leave a sample without any token.")
    if mask is None and int(lengths.min()) < int(lengths.max()):
        raise InputError(
            "delete='drop' leaves samples of several lengths, which only an attention_mask can tell apart: give one, "
            "or samples of one length."
        )
    at_end = mask is not None and bool((mask[:, 0] == 0).any())
    order = torch.where(left, 1, 0 if at_end else 2).argsort(dim=1, stable=True)
    kept = slice(-int(lengths.max()), None) if at_end else slice(int(lengths.max()))
    order = order[:, kept]
    moved = {
        name: value.gather(1, order) if isinstance(value, Tensor) and value.shape == ids.shape else value
        for name, value in given.items()
    }
    if mask is not None:
        moved["attention_mask"] = left.gather(1, order).to(mask)
        padding = getattr(explanation.lrp.config, "pad_token_id", None)
        if padding is not None:
            moved[explanation.units.name] = moved[explanation.units.name].masked_fill(~left.gather(1, order), padding)
    return moved
