"""A protocol measures every sample of a data set under a converted model, batch by batch.

In: a converted model and batches. Out: an :class:`~fxlrp.evaluate.evaluation.Evaluation`.
"""

from __future__ import annotations

import re
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from fxlrp.errors import InputError, nearest, visible
from fxlrp.evaluate.batches import Batch, as_batches
from fxlrp.evaluate.evaluation import Evaluation, Measured, Measurement
from fxlrp.evaluate.memory import Memory
from fxlrp.explain.model import ConvertedModel
from fxlrp.spec.citation import RulesetInfo

Measure = Callable[[Batch], Measured]
P = TypeVar("P")


class _CheckedOptions(ABCMeta):
    """Makes what pydantic says of a wrong option an :class:`InputError`."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        try:
            return super().__call__(*args, **options)
        except ValidationError as error:
            raise InputError(_wrong_option(cls, error)) from None


def _wrong_option(cls: Any, error: ValidationError) -> str:
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "literal_error"), errors[0])
    place = first["loc"][0] if first["loc"] else ""
    name = [*cls.__dataclass_fields__][place] if isinstance(place, int) else place  # given by position, or by name
    given, protocol = first["input"], cls.__name__
    if first["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", str(first["ctx"]["expected"]))
        return f"{protocol} has no {name}='{given}'.{nearest(str(given), valid)}"
    bounds = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "above {gt}",
        "less_than_equal": "at most {le}",
        "too_short": "at least {min_length} of them",
    }
    if first["type"] in bounds:
        return f"{protocol}: {name} must be {bounds[first['type']].format(**first['ctx'])}, not {given!r}."
    return f"{protocol}: {name}={given!r} is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}."


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def protocol(cls: type[P]) -> type[P]:
    """Make a subclass of :class:`Protocol` a frozen dataclass whose options are checked against their types."""
    made: Any = dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))(cls)
    checked: type[P] = made
    return checked


class Protocol(Measurement, metaclass=_CheckedOptions):
    """How relevance is evaluated. Subclasses are frozen dataclasses whose fields are the protocol's options; with
    :func:`protocol` an option of a wrong type or value is an :class:`InputError`.
    """

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
        label = escape(visible(f"{type(self).__name__} · {lrp.ruleset.name}"))
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
