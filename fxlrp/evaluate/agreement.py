"""Whether explanations agree: with those of other methods and other seeds, and with those of nearly the same input.

In: batches and other conversions. Out: rank correlations of relevance, one for each sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Explanation, Of, explain, explain_class
from fxlrp.evaluate.figures import distributions
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.evaluate.ranks import spearman
from fxlrp.evaluate.units import Tokens
from fxlrp.explain.model import ConvertedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RHO = "Spearman's rho of relevance"


@protocol
class RankCorrelation(Protocol):
    """Spearman's rho, within each sample, of the relevance of its units under ``lrp`` and under each of the ``others``.

    others: conversions by name: of the same model under other rulesets (agreement between methods), or of models
    trained from other seeds (stability). All explain the class that is explained for ``lrp``. Relevance by patch is
    enlarged to pixels first. NaN, and left out of the mean, where one finds all units of a sample alike.

    Source: Wu & Ong 2021 (arXiv 2101.00196): correlation between methods, and across models of several seeds.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Agreement with other explanations",
        "How alike two explanations of one output order the parts of the input.",
    )

    others: Mapping[str, ConvertedModel]
    of: Of = "predicted"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.others:
            raise InputError("RankCorrelation needs others={name: converted model} to correlate with.")

    def start(self, lrp: ConvertedModel) -> Measure:
        """Rho by name of the other [samples]."""

        def measure(batch: Batch) -> Measured:
            ours = explain_class(lrp, batch, self.of, self.keep, "RankCorrelation")
            theirs = {name: explain(other, batch, ours.result.target) for name, other in self.others.items()}
            return {name: rank_correlation(ours, other) for name, other in theirs.items()}

        return measure

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The mean rho with each."""
        return {name: float(measured[name].nanmean()) for name in self.others}

    def draw(self, evaluation: Evaluation) -> Figure:
        """How rho is distributed over samples, a row for each other."""
        rows = {name: evaluation.measured[name] for name in self.others}
        return distributions(rows, f"{RHO} with that of {evaluation.ruleset.name}")


def rank_correlation(ours: Explanation, theirs: Explanation, present: Tensor | None = None) -> Tensor:
    """Spearman's rho [samples] over the units that are present."""
    one, other = ours.units.relevance, theirs.units.relevance
    if one.shape != other.shape:
        raise InputError(
            f"Relevance of shape {tuple(one.shape)} under '{ours.lrp.ruleset.name}' and of shape {tuple(other.shape)} "
            f"under '{theirs.lrp.ruleset.name}' are of different units, so their ranks cannot be compared."
        )
    return spearman(one, other.to(one.device), ours.units.present if present is None else present)


@protocol
class Robustness(Protocol):
    """Spearman's rho of relevance before and after a small change of the input that leaves the prediction as it was.

    A float input x becomes x + ``noise`` std(x) e, with normal e and the standard deviation of each sample's x; of
    token ids one, chosen at random (from ``seed``), is replaced by ``replace``, and its own place left out of rho. Both
    explain the same class. Each sample is changed ``draws`` times; changes that move the arg-max of the logits do not
    count. ``kept`` is the share of those that do. A sample without any is NaN, and left out of the mean.

    Source: Wu & Ong 2021 (arXiv 2101.00196), robustness; after Alvarez-Melis & Jaakkola 2018 (arXiv 1806.08049), who
    divide the distance of two explanations by that of the inputs.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Robustness",
        "The input is changed so little that the answer stays: the explanation should stay, too.",
        {"spearman": "rank correlation of relevance before and after", "kept": "share of changes that left the answer"},
    )

    replace: int | None = None
    noise: float = Field(default=0.05, gt=0)
    draws: int = Field(default=5, ge=1)
    of: Of = "predicted"
    keep: tuple[int, ...] = ()
    seed: int = 0

    def start(self, lrp: ConvertedModel) -> Measure:
        """``spearman`` [samples], mean over the changes that count, and their share, ``kept`` [samples]."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        before = explain_class(lrp, batch, self.of, self.keep, "Robustness")
        generator = drawing(batch, self.seed)
        predicted = _predicted(before.logits())
        rhos, kept = [], []
        for _ in range(self.draws):
            inputs, changed = self._changed(before, generator)
            same = _predicted(before.logits(inputs)) == predicted
            after = explain(lrp, Batch(inputs), before.result.target)
            rho = rank_correlation(before, after, before.units.present & ~changed)
            rhos.append(rho.masked_fill(~same, float("nan")))
            kept.append(same)
        return {"spearman": torch.stack(rhos, 1).nanmean(1), "kept": torch.stack(kept, 1).double().mean(1)}

    def _changed(self, before: Explanation, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs after one small change, and the units [samples, units] whose own value is another one."""
        units = before.units
        if isinstance(units, Tokens):
            chosen = units.first(units.ranks("random", generator), torch.ones_like(units.counts))
            return before.without(chosen, self.replace), chosen
        value = units.value
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        spread = value.flatten(1).std(1).view(-1, *[1] * (value.ndim - 1))
        return before.with_units(value + self.noise * spread * noise), torch.zeros_like(units.present)

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The mean rho, and the share of changes that count."""
        return {"spearman": float(measured["spearman"].nanmean()), "kept": float(measured["kept"].mean())}

    def better(self) -> dict[str, int]:
        """Nearly the same input should have nearly the same explanation."""
        return {"spearman": 1}

    def draw(self, evaluation: Evaluation) -> Figure:
        """How rho is distributed over samples."""
        return distributions({evaluation.ruleset.name: evaluation.measured["spearman"]}, RHO)


def _predicted(logits: Tensor) -> Tensor:
    """The arg-max over all logits of a sample [samples]."""
    return logits.flatten(1).argmax(1)
