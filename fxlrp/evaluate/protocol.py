"""A protocol measures every sample of a data set under a converted model, batch by batch.

In: a converted model and batches. Out: an :class:`~fxlrp.evaluate.evaluation.Evaluation`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fxlrp.errors import InputError, nearest
from fxlrp.evaluate.batches import Batch, as_batches
from fxlrp.evaluate.evaluation import Evaluation, Measured, Measurement
from fxlrp.evaluate.memory import Memory
from fxlrp.explain.model import ConvertedModel
from fxlrp.spec.citation import RulesetInfo

Measure = Callable[[Batch], Measured]


class Protocol(Measurement):
    """How relevance is evaluated. Subclasses are frozen dataclasses whose fields are the protocol's options."""

    def check(self, option: str, valid: Iterable[str]) -> None:
        """Raise :class:`InputError` where an option is none of the ``valid`` ones."""
        value, known = getattr(self, option), tuple(valid)
        if value not in known:
            raise InputError(f"{type(self).__name__} has no {option}='{value}'.{nearest(str(value), known)}")

    @abstractmethod
    def start(self, lrp: ConvertedModel) -> Measure:
        """What measures one batch; anything that the model needs only once is made here."""

    def evaluation(self, ruleset: RulesetInfo, measured: Measured) -> Evaluation:
        """What :meth:`run` gives."""
        return Evaluation(self, ruleset, measured)

    def run(
        self,
        lrp: ConvertedModel,
        batches: Any,
        *,
        resume: str | Path | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """Measure every batch.

        batches: an iterable of inputs, ``(inputs, labels)``, ``(inputs, labels, truth)`` or :class:`Batch`; see
        :class:`Batch`. resume: a folder in which every finished batch is kept, so that a run that was interrupted goes
        on where it stopped; what is kept there under another model, ruleset, protocol or data set is left alone.
        progress: show a bar on stderr. Raises :class:`InputError` where there is no sample.
        """
        memory = Memory.of(resume, self, lrp)
        measure: Measure | None = None
        parts: list[Measured] = []
        total = len(batches) if hasattr(batches, "__len__") and not isinstance(batches, (Mapping, Tensor)) else None
        label = f"{type(self).__name__} · {lrp.ruleset.name}"
        shown = track(
            as_batches(batches),
            label,
            total=total,
            console=Console(stderr=True),
            transient=True,
            disable=not progress,
        )
        for batch in shown:
            found = memory.recall(batch)
            if found is None:
                measure = measure or self.start(lrp)
                found = {name: value.detach().cpu() for name, value in measure(batch).items()}
                memory.keep(batch, found)
            parts.append(found)
        if not parts:
            raise InputError("There is nothing to evaluate: the iterable of batches is empty.")
        return self.evaluation(lrp.ruleset.info, joined(parts))


def joined(parts: list[Measured]) -> Measured:
    """The numbers of several batches as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
