"""Conservation: whether the relevance of the inputs adds up to what is explained.

In: batches. Out: sums of relevance against explained values, and the gap between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Of, selection
from fxlrp.evaluate.figures import against_diagonal
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.explain.model import ConvertedModel
from fxlrp.results.attribution import Attribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@protocol
class Conservation(Protocol):
    """The sum of relevance over all inputs against the explained output, and the gap (begun - sum) / |begun|.

    ``begun`` is what the ruleset's relevance begins with at the output: the explained value, 1 where its seed is 'one',
    a probability where it is 'probability'. Relevance that biases keep is a gap here; with ``ledger`` also the gap of
    the ledger is measured, which accounts for biases, constants and declared leaks, and should be rounding (see
    :class:`fxlrp.Ledger`).

    Source: Ali et al. 2022 (arXiv 2202.07304), section 4.3 and figure 3 (the scatter).
    """

    WORDS: ClassVar[Wording] = Wording(
        "Conservation",
        "The relevance of all inputs together is compared with the output that it explains: a method that "
        "conserves relevance keeps them equal.",
        {
            "correlation": "correlation of the sum of relevance with the explained output",
            "|gap| median": "what is missing of the output, as a share of it: half of the samples miss less",
            "|gap| 95 %": "what is missing: 95 % of the samples miss less",
        },
    )

    of: Of = "predicted"
    ledger: bool = False

    def start(self, lrp: ConvertedModel) -> Measure:
        """``explained``, ``total``, ``gap`` and, with ``ledger``, ``ledger_gap`` [samples], both gaps over |begun|."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        labels = batch.needs("labels", "Conservation of labels").tolist() if self.of == "label" else None
        result = lrp.attribute(batch.inputs, target=labels, ledger=self.ledger)
        explained = result.explained.double().cpu()
        sums = [relevance.double().flatten(1).sum(1).cpu() for relevance in result.inputs.values()]
        total = torch.stack(sums).sum(0)
        begun = _begun(lrp, result).double().cpu()
        measured = {"explained": explained, "total": total, "gap": (begun - total) / begun.abs()}
        if result.ledger is not None:
            measured["ledger_gap"] = result.ledger.gap.double().cpu() / begun.abs()
        return measured

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Pearson's correlation of sum and explained value, the median of |gap| and its 95th percentile."""
        pair = torch.stack([measured["total"], measured["explained"]])
        found = {"correlation": float(torch.corrcoef(pair)[0, 1]) if pair.shape[1] > 1 else float("nan")}
        for name, title in (("gap", "|gap|"), ("ledger_gap", "|ledger gap|")):
            if name in measured:
                found[f"{title} median"] = _quantile(measured[name], 0.5)
                found[f"{title} 95 %"] = _quantile(measured[name], 0.95)
        return found

    def better(self) -> dict[str, int]:
        """The sum should be the output."""
        gaps = ("|gap| median", "|gap| 95 %", "|ledger gap| median", "|ledger gap| 95 %")
        return {"correlation": 1, **dict.fromkeys(gaps, -1)}

    def draw(self, evaluation: Evaluation) -> Figure:
        """The sum against the explained value, with the diagonal, and how the gap is distributed."""
        measured = evaluation.measured
        return against_diagonal(
            measured["explained"],
            measured["total"],
            measured["gap"],
            ("explained output", "sum of relevance", "relative gap (the outermost 5 % at the ends)"),
            f"{evaluation.ruleset.name}, {len(evaluation)} samples",
        )


def _begun(lrp: ConvertedModel, result: Attribution) -> Tensor:
    """What relevance begins with at the output [samples]."""
    if lrp.ruleset.begins_as_explained:
        return result.explained
    return selection(result.target)(result.outputs, lrp.ruleset.begun)


def _quantile(values: Tensor, share: float) -> float:
    return float(torch.nanquantile(values.abs(), share))
