"""The same inputs, or the same data set, under several rulesets: one attribution each, how far they agree, and what
protocols of :mod:`fxlrp.evaluate` measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from fxlrp.engine.targets import Target
from fxlrp.errors import InputError, ReadingError, warn
from fxlrp.evaluate.batches import Batch, as_batches
from fxlrp.evaluate.concordance import rank_agreement
from fxlrp.evaluate.evaluation import Evaluation
from fxlrp.evaluate.protocol import Protocol
from fxlrp.evaluate.standings import Standing, standings, tabulate
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.results.attribution import Attribution
from fxlrp.results.views import Viewed
from fxlrp.spec.ruleset import Ruleset

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison(Viewed):
    """The same inputs under several rulesets, by name of the ruleset.

    ``attributions`` are those of the inputs, or of the first batch of a data set. ``evaluations`` holds for each
    ruleset one :class:`fxlrp.evaluate.Evaluation` per protocol, over all samples. ``rho`` [samples, rulesets, rulesets]
    are the rank correlations of all samples, where these are more than are shown. ``left_out`` says of each ruleset
    whose reading does not fit the model why it was left out.
    """

    attributions: dict[str, Attribution]
    evaluations: dict[str, list[Evaluation]] = field(default_factory=dict)
    rho: Tensor | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Attribution:
        return self.attributions[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The rulesets, in the order of the rows of :attr:`agreement`."""
        return tuple(self.attributions)

    @cached_property
    def agreements(self) -> Tensor:
        """Spearman's rho between rulesets by sample [samples, rulesets, rulesets].

        See :func:`fxlrp.evaluate.concordance.rank_agreement` for what is correlated and where it is NaN.
        """
        return rank_agreement(list(self.attributions.values())) if self.rho is None else self.rho

    @property
    def agreement(self) -> Tensor:
        """The mean over samples of :attr:`agreements`, [rulesets, rulesets]; NaN where no sample has a number."""
        return self.agreements.nanmean(0)

    @cached_property
    def standings(self) -> list[Standing]:
        """Each statistic of each protocol under every ruleset, with 95 % intervals; who is best, and who is close."""
        return standings(self.evaluations)

    def table(self) -> pd.DataFrame:
        """The statistics of all protocols with their intervals, one row per protocol, statistic and ruleset (extra
        'data').
        """
        return tabulate(self.standings)


def compare(
    model: nn.Module,
    inputs: Any,
    rulesets: Sequence[str | Path | Mapping[str, Any] | Ruleset],
    target: Target = None,
    *,
    protocols: Sequence[Protocol] = (),
    shown: int | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """The same inputs under several rulesets; the model is captured once.

    inputs: one batch as the model takes it, or a data set: an iterable of batches, each inputs, ``(inputs, labels)``,
    ``(inputs, labels, truth)`` or a :class:`fxlrp.evaluate.Batch`. protocols: of :mod:`fxlrp.evaluate`, run for each
    ruleset over all samples; each takes its own target. Agreement is over all samples as well. shown: so many samples
    of the first batch get an attribution in the result, all of them unless given. resume: a folder in which finished
    batches of protocols are kept. progress: show bars on stderr. options: those of
    :meth:`fxlrp.ConvertedModel.attribute`; a ``reference``, a ledger and modules (``at``) are for those rulesets that
    have them. A ruleset that reads what the model does not have (attention, tokens) is left out with a warning;
    :attr:`Comparison.left_out` says why.

    Results are keyed by ruleset name; a second one of the same name gets its number behind it.
    """
    batches = list(as_batches(inputs))
    if not batches or not rulesets:
        raise InputError(f"There is nothing to compare: no {'ruleset' if batches else 'batch'} was given.")
    if len(batches) > 1 and (isinstance(target, list) or (isinstance(target, Tensor) and target.ndim)):
        raise InputError(
            "A target per sample belongs to one batch, and there are several: give one class for all, None for the "
            "predicted one, or a callable."
        )
    converted = _converted(model, rulesets)
    first = batches[0].inputs if shown is None else _beginning(batches[0], shown)
    # One ruleset alone says itself that it has no ledger; among several it goes without.
    alone = len(converted) == 1
    results, left_out = _attributions(converted, first, target, options, alone)
    converted = {name: converted[name] for name in results}
    whole = len(batches) == 1 and shown is None
    rho = None if whole else _agreement(converted, batches, target, options, progress)
    evaluations = {
        name: [protocol.run(lrp, batches, resume=resume, progress=progress) for protocol in protocols]
        for name, lrp in converted.items()
    }
    return Comparison(results, evaluations if protocols else {}, rho, left_out)


def _attributions(
    converted: Mapping[str, ConvertedModel], inputs: Any, target: Target, options: Mapping[str, Any], alone: bool
) -> tuple[dict[str, Attribution], dict[str, str]]:
    """The attribution under each ruleset whose reading fits the model, and why the others were left out, of which a
    warning tells. Raises :class:`ReadingError` where none fits.
    """
    results: dict[str, Attribution] = {}
    left_out: dict[str, str] = {}
    for name, lrp in converted.items():
        try:
            results[name] = _attribute(lrp, inputs, target, options, alone)
        except ReadingError as error:
            left_out[name] = str(error)
            if len(left_out) == len(converted):
                raise
    for name, reason in left_out.items():
        warn(f"'{name}' is left out of the comparison: {reason}")
    return results, left_out


def _converted(model: nn.Module, rulesets: Sequence[Any]) -> dict[str, ConvertedModel]:
    """The model under each ruleset, captured once between them."""
    found: dict[str, ConvertedModel] = {}
    first = convert(model, rulesets[0])
    for rules in rulesets:
        lrp = first if not found else first.with_ruleset(rules)
        name = lrp.ruleset.name
        same = sum(key == name or key.startswith(f"{name} (") for key in found)
        found[f"{name} ({same + 1})" if same else name] = lrp
    return found


def _attribute(
    lrp: ConvertedModel, inputs: Any, target: Target, options: Mapping[str, Any], alone: bool = False
) -> Attribution:
    """The attribution under one ruleset; ``alone`` leaves out none of the options but the reference."""
    rules = lrp.ruleset
    unknown = set() if rules.compares else {"reference"}
    if not alone:
        unknown |= {"ledger"} if rules.compares or not rules.readout.accounts else set()
        unknown |= set() if rules.readout.taps else {"at"}
    known = {name: value for name, value in options.items() if name not in unknown}
    return lrp.attribute(inputs, target=target, **known)


def _beginning(batch: Batch, count: int) -> Any:
    """The inputs of the first samples of a batch."""
    if count < 1:
        raise InputError(f"shown must be at least 1, not {count}.")
    if isinstance(batch.inputs, Tensor):
        return batch.inputs[:count]
    size = len(batch)
    return {
        name: value[:count] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batch.inputs.items()
    }


def _agreement(
    converted: Mapping[str, ConvertedModel],
    batches: Sequence[Batch],
    target: Target,
    options: Mapping[str, Any],
    progress: bool,
) -> Tensor:
    """Rank correlations of all samples; what is asked for beside relevance (ledger, taps) is left out."""
    plain = {name: value for name, value in options.items() if name in ("contrast", "reference")}
    bar = track(batches, "agreement", console=Console(stderr=True), transient=True, disable=not progress)
    return torch.cat(
        [rank_agreement([_attribute(lrp, batch.inputs, target, plain) for lrp in converted.values()]) for batch in bar]
    )
