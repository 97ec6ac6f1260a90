"""Whether relevance says what the model does: against what happens to the output when units are replaced.

In: batches. Out: the area between two perturbation curves, comprehensiveness and sufficiency, the rank correlation with
leaving units out one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Explanation, Of, Watched, explain_class
from fxlrp.evaluate.figures import distributions, lines
from fxlrp.evaluate.groups import patches
from fxlrp.evaluate.perturbation import Perturbation
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.evaluate.ranks import spearman
from fxlrp.evaluate.units import Replacement
from fxlrp.explain.model import ConvertedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@protocol
class AreaBetween(Protocol):
    """ABPC: the area between the curves of the least and of the most relevant units first.

    (1 / F) sum over the fractions p of f_c(x without the least relevant) - f_c(x without the most relevant), with the
    options of :class:`Perturbation`. Curves begin and end at the same value, so that a shift of the output changes
    nothing; a random order has an expected area of 0.

    Source: Achtibat et al. 2024 (AttnLRP, arXiv 2402.05602), section 4.1; Bluecher et al. 2024 (arXiv 2401.06654), who
    call it symmetric relevance gain.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Area between curves",
        "The parts of the input are taken away once with the least relevant and once with the most relevant "
        "first: under a good explanation the first hurts late, the second early.",
        {"abpc": "area between the two curves of the output"},
    )

    fractions: int | tuple[float, ...] = 11
    replace: Replacement | None = None
    watch: Watched = "logit"
    of: Of = "predicted"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _ = self.curves

    @property
    def curves(self) -> tuple[Perturbation, Perturbation]:
        """The two perturbations: least and most relevant units first."""
        least, most = (
            Perturbation(order, "remove", self.fractions, self.replace, self.watch) for order in ("least", "most")
        )
        return least, most

    def start(self, lrp: ConvertedModel) -> Measure:
        """Curves [samples, F], ``least`` and ``most`` relevant first."""
        least, most = self.curves

        def measure(batch: Batch) -> Measured:
            explanation = explain_class(lrp, batch, self.of, self.keep, "AreaBetween")
            return {"least": least.watched(explanation)["curve"], "most": most.watched(explanation)["curve"]}

        return measure

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The area."""
        return {"abpc": float((measured["least"] - measured["most"]).double().mean())}

    def better(self) -> dict[str, int]:
        """Larger: what is called relevant matters more than what is not."""
        return {"abpc": 1}

    def draw(self, evaluation: Evaluation) -> Figure:
        """Both curves."""
        named = {f"{name} relevant first": evaluation.measured[name] for name in ("least", "most")}
        title = f"{evaluation.ruleset.name}, area {evaluation['abpc']:.3f}"
        up = f"{self.watch} (mean of {len(evaluation)} samples)"
        return lines(self.curves[0].steps, named, "fraction of units replaced", up, title)


@protocol
class Eraser(Protocol):
    """Comprehensiveness and sufficiency of the most relevant units, of which a rationale would be made.

    Comprehensiveness is p(x) - p(x without the first q of the units), sufficiency p(x) - p(x with these alone), both of
    the probability p of the explained class and averaged over ``shares`` q (rounded up). The others are replaced by
    ``replace``, as most models take no gaps; see :class:`Perturbation`.

    Source: DeYoung et al. 2020 (ERASER, arXiv 1911.03429), section 5, for graded scores: 1, 5, 10, 20 and 50 %.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Rationales",
        "The most relevant parts are taken away, and kept alone: without them the probability of the answer "
        "should fall, with them alone it should stay.",
        {
            "comprehensiveness": "how far the probability falls without the most relevant parts",
            "sufficiency": "how far it falls with the most relevant parts alone",
        },
    )

    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)
    replace: Replacement | None = None
    of: Of = "predicted"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares) <= 0:
            raise InputError(f"shares={self.shares} must be above 0.")
        _ = self.curves

    @property
    def curves(self) -> tuple[Perturbation, Perturbation]:
        """The two perturbations: the most relevant units go, and they alone are there."""
        taken = Perturbation("most", "remove", (0.0, *self.shares), self.replace)
        return taken, Perturbation("most", "add", (0.0, *self.shares), self.replace)

    def start(self, lrp: ConvertedModel) -> Measure:
        """``comprehensiveness`` and ``sufficiency`` by share [samples, shares]."""
        taken, alone = self.curves

        def measure(batch: Batch) -> Measured:
            explanation = explain_class(lrp, batch, self.of, self.keep, "Eraser")
            without = taken.watched(explanation)["curve"]
            whole, only = without[:, :1], alone.watched(explanation)["curve"]
            return {"comprehensiveness": whole - without[:, 1:], "sufficiency": whole - only[:, 1:]}

        return measure

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The means over samples and shares."""
        return {name: float(value.double().mean()) for name, value in measured.items()}

    def better(self) -> dict[str, int]:
        """The probability should fall without the rationale, and stay with it alone."""
        return {"comprehensiveness": 1, "sufficiency": -1}

    def draw(self, evaluation: Evaluation) -> Figure:
        """Both over the share of units."""
        up = f"fall of probability (mean of {len(evaluation)} samples)"
        return lines(self.shares, evaluation.measured, "most relevant units", up, evaluation.ruleset.name)


@protocol
class LeaveOneOut(Protocol):
    """Spearman's rho, within each sample, of the relevance of units i and f(x) - f(x with unit i replaced).

    patch: group the pixels of an image into squares of so many pixels each way, whose relevance is summed; a sample
    takes as many forward passes as it has units. NaN, and left out of the mean, where all units of a sample are alike.

    Source: Jain & Wallace 2019 (arXiv 1902.10186), section 4.1, who take Kendall's tau, for attention weights.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Leaving parts out one by one",
        "Each part of the input is replaced on its own: the order of what that changes should be the order of "
        "relevance.",
        {"spearman": "rank correlation of relevance with the change of the output"},
    )

    replace: Replacement | None = None
    watch: Watched = "logit"
    of: Of = "predicted"
    keep: tuple[int, ...] = ()
    patch: int | None = None

    def start(self, lrp: ConvertedModel) -> Measure:
        """``spearman`` by sample."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        explanation = explain_class(lrp, batch, self.of, self.keep, "LeaveOneOut")
        if self.patch is not None:
            explanation = explanation.in_units(patches(explanation.units, self.patch))
        units = explanation.units
        return {"spearman": spearman(units.relevance, _effects(explanation, self), units.present)}

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The mean rho."""
        return {"spearman": float(measured["spearman"].nanmean())}

    def better(self) -> dict[str, int]:
        """Larger."""
        return {"spearman": 1}

    def draw(self, evaluation: Evaluation) -> Figure:
        """How rho is distributed over samples."""
        return distributions({evaluation.ruleset.name: evaluation.measured["spearman"]}, "Spearman's rho")


def _effects(explanation: Explanation, protocol: LeaveOneOut) -> Tensor:
    """f(x) - f(x with unit i replaced), [samples, units]."""
    units, seen = explanation.units, explanation.seen()
    whole = seen(explanation.logits(), protocol.watch)
    effects = []
    for unit in range(units.relevance.shape[1]):
        chosen = torch.zeros_like(units.present)
        chosen[:, unit] = units.present[:, unit]
        effects.append(whole - seen(explanation.logits(explanation.without(chosen, protocol.replace)), protocol.watch))
    return torch.stack(effects, 1)
