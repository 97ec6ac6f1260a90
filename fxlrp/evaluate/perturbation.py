"""Perturbation: units are replaced, or put back, in the order of their relevance, and the output is watched.

The experiments of Ali et al. 2022, Chefer et al. 2021, Arras et al. 2017 and Achtibat et al. 2024 differ in the order,
in what is done to the units, in what is watched and in how far it goes; all are options of :class:`Perturbation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured
from fxlrp.evaluate.explanation import Explanation, Of, Watched, at_places, explain_class
from fxlrp.evaluate.figures import lines
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.evaluate.units import Replacement
from fxlrp.explain.model import ConvertedModel
from fxlrp.spec.citation import RulesetInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["most", "least", "absolute-most", "absolute-least", "random"]


@protocol
class Perturbation(Protocol):
    """f(x) when a growing fraction of an input's units is gone (``mode="remove"``) or is back (``mode="add"``).

    At fraction p the first n = ceil(p N) of a sample's N units (tokens, pixels, features; padding is none) in the
    ``order`` of relevance are replaced by ``replace``, or, in mode ``add``, all the others are. ``rounding="down"``
    takes floor(p N). ``order``: ``most`` relevant first, ``least`` (most negative) first, either by absolute value, or
    ``random`` (from ``seed``), the baseline that needs no explanation.

    Watched is the ``probability`` softmax(f)_c, the ``logit`` f_c, or the ``accuracy`` 1[argmax f = c] of the explained
    class c: the ``predicted`` one, or (``of="label"``) the label of the sample. ``watch_label`` watches the label
    whatever is explained. Beside it sum_k (f_k(x) - f_k(x_p))^2 is kept, the squared error over all K logits (of a
    language model those at the explained position).

    replace: a token id (that of [UNK]; ids need one), a number (0 unless given), a colour, or a tensor that broadcasts.
    fractions: how many equally spaced from 0 to 1, or the fractions themselves. keep: token ids that are left alone
    (special tokens).

    Source: Ali et al. 2022, section 5.2 (11 fractions, [UNK], trapezoid; their code takes the ceiling, and the sum of
    squares over logits); Chefer et al. 2021, section 4 (fractions 0 to 0.9, floor, black pixels, accuracy on labels).
    """

    order: Order = "most"
    mode: Literal["add", "remove"] = "remove"
    fractions: int | tuple[float, ...] = 11
    replace: Replacement | None = None
    watch: Watched = "probability"
    of: Of = "predicted"
    watch_label: bool = False
    rounding: Literal["up", "down"] = "up"
    keep: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= f <= 1 for f in self.steps) or list(self.steps) != sorted(set(self.steps)):
            raise InputError(f"fractions must rise from 0 to 1; {self.fractions} do not.")
        if len(self.steps) < 2:
            raise InputError("There must be at least two fractions, or there is no curve.")

    @property
    def steps(self) -> tuple[float, ...]:
        """The fractions [F]."""
        if isinstance(self.fractions, int):
            return tuple(torch.linspace(0, 1, self.fractions, dtype=torch.float64).tolist())
        return tuple(float(f) for f in self.fractions)

    def start(self, lrp: ConvertedModel) -> Measure:
        """Curves [samples, F] of what is watched, and of the squared error."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        labels = batch.needs("labels", "Perturbation of labels") if self.watch_label else None
        explanation = explain_class(lrp, batch, self.of, self.keep, "Perturbation")
        return self.watched(explanation, drawing(batch, self.seed), labels)

    def watched(
        self, explanation: Explanation, generator: torch.Generator | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The curves of an explanation: what is watched of the explained class, or of ``labels`` [samples].

        ``generator`` is what a random order is drawn from.
        """
        seen = explanation.seen(labels)
        chosen = explanation.chosen()
        whole = at_places(explanation.logits(), chosen)
        curve, error = [], []
        for inputs in self._perturbed(explanation, generator):
            logits = explanation.logits(inputs)
            curve.append(seen(logits, self.watch))
            error.append((at_places(logits, chosen) - whole).double().square().sum(1))
        return {"curve": torch.stack(curve, 1), "squared_error": torch.stack(error, 1)}

    def _perturbed(self, explanation: Explanation, generator: torch.Generator | None) -> Iterator[dict[str, Any]]:
        units = explanation.units
        ranks = units.ranks(self.order, generator)
        for fraction in self.steps:
            share = fraction * units.counts.double()
            # A product such as 0.3 * 10 may lie a rounding above the whole number that is meant.
            counts = (share - 1e-9).ceil() if self.rounding == "up" else (share + 1e-9).floor()
            first = units.first(ranks, counts)
            gone = first if self.mode == "remove" else units.present & ~first
            yield explanation.without(gone, self.replace)

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The areas under both mean curves."""
        curves = {"auac": measured["curve"], "au_mse": measured["squared_error"]}
        return {name: area(curve.double().mean(0), self.steps) for name, curve in curves.items()}

    def better(self) -> dict[str, int]:
        """What is relevant should matter when it goes, and suffice when it comes back.

        The squared error says so for orders by absolute value alone: with all that speaks for the answer in place and
        nothing that speaks against it, logits overshoot under the best of explanations.
        """
        if self.order == "random":
            return {}
        kept = 1 if (self.mode == "add") == self.order.endswith("most") else -1
        return {"auac": kept, "au_mse": -kept} if self.order.startswith("absolute") else {"auac": kept}

    @property
    def title(self) -> str:
        """The order, and what is done to the units."""
        return f"Perturbation: {self.order.replace('-', ' ')} relevant {self._done} first"

    @property
    def summary(self) -> str:
        """What is done, and what a good explanation does to the curve."""
        order = {
            "most": "those that speak most for the answer first",
            "least": "those that speak most against the answer first",
            "absolute-most": "those that matter most first, for or against",
            "absolute-least": "those that matter least first",
            "random": "in random order",
        }[self.order]
        begin = "From an input with all parts (words, pixels) replaced, they" if self.mode == "add" else "The parts"
        begin += "" if self.mode == "add" else " of the input (words, pixels)"
        return f"{begin} are {self._done} step by step, {order}, and the model's {self.watch} is watched: {self._hope}."

    @property
    def _done(self) -> str:
        return "put back" if self.mode == "add" else "replaced"

    @property
    def _hope(self) -> str:
        kept = self.better().get("auac", 0)
        if not kept:
            return "the baseline that needs no explanation"
        way = ("rises early" if kept > 0 else "rises late") if self.mode == "add" else "stays high"
        return f"under a good explanation it {way if self.mode == 'add' or kept > 0 else 'falls early'}"

    def meanings(self) -> dict[str, str]:
        """The areas in plain words."""
        return {
            "auac": f"area under the curve of the {self.watch}",
            "au_mse": "area under the curve of the squared error of the logits",
        }

    def evaluation(self, ruleset: RulesetInfo, measured: Measured) -> PerturbationCurves:
        """The curves."""
        return PerturbationCurves(self, ruleset, measured)

    def draw(self, evaluation: Evaluation) -> Figure:
        """The mean curve with its 95 % bootstrap band."""
        assert isinstance(evaluation, PerturbationCurves)
        return curves([evaluation])


def area(curve: Tensor, fractions: Sequence[float]) -> float:
    """The area under a curve [F] by the trapezoid rule."""
    return float(torch.trapezoid(curve.double(), torch.tensor(fractions, dtype=torch.float64)))


@dataclass(frozen=True)
class PerturbationCurves(Evaluation):
    """The curves of a :class:`Perturbation`."""

    protocol: Perturbation

    @property
    def fractions(self) -> Tensor:
        """The fractions of units [F] that are gone, or back."""
        return torch.tensor(self.protocol.steps, dtype=torch.float64)

    @property
    def curves(self) -> Tensor:
        """What is watched, by sample [samples, F]."""
        return self.measured["curve"].double()

    @property
    def curve(self) -> Tensor:
        """What is watched [F], mean over samples."""
        return self.curves.mean(0)

    @property
    def mse_curve(self) -> Tensor:
        """The squared error of the logits [F], summed over logits, mean over samples."""
        return self.measured["squared_error"].double().mean(0)

    @property
    def auac(self) -> float:
        """The area under :attr:`curve` (Ali et al. 2022: under the activation curve), by the trapezoid rule."""
        return self["auac"]

    @property
    def au_mse(self) -> float:
        """The area under :attr:`mse_curve`, by the trapezoid rule."""
        return self["au_mse"]


def curves(evaluations: Sequence[PerturbationCurves], draws: int = 500) -> Figure:
    """The mean curve of each evaluation over the fractions, with the band of its 95 % bootstrap intervals."""
    names = ["random" if e.protocol.order == "random" else e.ruleset.name for e in evaluations]
    labelled = {f"{name} ({e.auac:.3f})": e.curves for name, e in zip(names, evaluations, strict=True)}
    protocol = evaluations[0].protocol
    done = "put back" if protocol.mode == "add" else "replaced"
    return lines(
        evaluations[0].fractions.tolist(),
        labelled,
        f"fraction of units {done}, {protocol.order} relevant first",
        f"{protocol.watch} (mean of {len(evaluations[0])} samples)",
        "area under the curve",
        draws,
    )
