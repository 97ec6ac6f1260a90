"""The papers' experiments: which explanation explains a model best, and by how much.

A :class:`Protocol` measures every sample of a data set under a converted model and gives an :class:`Evaluation`:
statistics with bootstrap intervals, a table, a plot. Protocols run over any model, ruleset and data set, batch by
batch; an interrupted run goes on where it stopped (``resume=folder``).

    lrp = fxlrp.convert(model, "attnlrp")
    curves = fxlrp.evaluate.perturbation(lrp, batches, order="most", mode="add", replace=tokenizer.unk_token_id)
    curves.auac, curves.intervals()["auac"], curves.plot()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxlrp.evaluate.adapters import CaptumInfidelity, CaptumSensitivity, quantus_explainer
from fxlrp.evaluate.agreement import RankCorrelation, Robustness
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.conservation import Conservation
from fxlrp.evaluate.evaluation import Evaluation, Interval
from fxlrp.evaluate.faithfulness import AreaBetween, Eraser, LeaveOneOut
from fxlrp.evaluate.localisation import Segmentation, TokenF1
from fxlrp.evaluate.perturbation import Order, Perturbation, PerturbationCurves
from fxlrp.evaluate.presets import (
    ali2022_activation,
    ali2022_pruning,
    black,
    chefer2021_negative,
    chefer2021_positive,
)
from fxlrp.evaluate.protocol import Protocol, protocol
from fxlrp.evaluate.representative import RepresentativeWords, representative_words
from fxlrp.evaluate.sanity import ParameterRandomisation
from fxlrp.evaluate.units import Replacement
from fxlrp.evaluate.words import WordDeletion
from fxlrp.explain.model import ConvertedModel


def perturbation(
    lrp: ConvertedModel,
    batches: Any,
    order: Order = "most",
    mode: Any = "remove",
    fractions: int | tuple[float, ...] = 11,
    replace: Replacement | None = None,
    *,
    resume: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> PerturbationCurves:
    """Run :class:`Perturbation` with these options: gives ``.auac``, ``.au_mse``, ``.curve``, ``.plot()``.

    Ali et al. 2022: AUAC is ``order="most", mode="add"``, AU-MSE ``order="absolute-least", mode="remove"``, both with
    ``replace`` the id of [UNK].
    """
    chosen = Perturbation(order, mode, fractions, replace, **options)
    curves = chosen.run(lrp, batches, resume=resume, progress=progress)
    assert isinstance(curves, PerturbationCurves)
    return curves


__all__ = [
    "AreaBetween",
    "Batch",
    "CaptumInfidelity",
    "CaptumSensitivity",
    "Conservation",
    "Eraser",
    "Evaluation",
    "Interval",
    "LeaveOneOut",
    "ParameterRandomisation",
    "Perturbation",
    "PerturbationCurves",
    "Protocol",
    "RankCorrelation",
    "RepresentativeWords",
    "Robustness",
    "Segmentation",
    "TokenF1",
    "WordDeletion",
    "ali2022_activation",
    "ali2022_pruning",
    "black",
    "chefer2021_negative",
    "chefer2021_positive",
    "perturbation",
    "protocol",
    "quantus_explainer",
    "representative_words",
]
