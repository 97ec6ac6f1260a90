"""What is explained: from a user's target to one scalar per sample.

In: the model's output object and a target in any of its forms. Out: the scalars, the resolved target and
readable labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.engine.outputs import Kind, Scored, named_output
from fxlrp.errors import FxlrpError, TargetError

Target = int | Sequence[Any] | Tensor | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Selection:
    """Entries of the logits, (position,) class each: one per sample, or of the ``samples`` that are named. ``field``
    is the output that they are of, where it is not the one that is explained unless another is named.
    """

    index: tuple[tuple[int, ...], ...]
    samples: tuple[int, ...] | None = None
    field: str | None = None

    def __call__(self, outputs: Any, scores: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The chosen logits [entries], or entries of the ``scores`` that a function makes of all logits."""
        logits = logits_of(outputs, self.field)
        found = logits if scores is None else scores(logits)
        # One gather for the batch: a chain of selections would allocate the logits' gradient anew for each sample.
        samples = self.samples or range(len(self.index))
        axes = zip(*((sample, *place) for sample, place in zip(samples, self.index, strict=True)), strict=True)
        return found[tuple(torch.tensor(axis, device=found.device) for axis in axes)]


def logits_of(outputs: Any, name: str | None = None) -> Tensor:
    """The output that is explained unless another is named, or the one of this ``name``: [batch, ...]."""
    return named_output(outputs, name)[1]


def named(target: Target) -> tuple[str | None, Target]:
    """The output that a target names first, ``("end_logits", 7)``, and the rest of it; None where it names none."""
    if not isinstance(target, tuple) or not target or not isinstance(target[0], str):
        return None, target
    rest = target[1:]
    return target[0], None if not rest else rest[0] if len(rest) == 1 else rest


def resolve(target: Target, outputs: Any, mask: Tensor | None, scored: Scored) -> Selection:
    """Turn a target into one entry per sample of the output that it names, or of the logits.

    ``None`` is the arg-max: of the last position that is not padding where the model generates text, of the masked
    positions where it fills these in, else over everything. Raises :class:`TargetError` if out of range or of the wrong
    shape.
    """
    field, target = named(target)
    logits = logits_of(outputs, field).detach()
    batch = len(logits)
    if mask is not None and len(mask) != batch:  # rows of the logits are no samples (several codebooks of one)
        mask = None
    if isinstance(target, Tensor):
        target = target.tolist()
    if logits.ndim == 1:
        if target is not None:
            raise TargetError(
                f"The model gives one number per sample, not scores of classes: leave target= out, not {target!r}."
            )
        return Selection(((),) * batch, field=field)
    if target is None:
        return Selection(_argmax(logits, mask, scored), field=field)
    if _is_index(target) or isinstance(target, tuple):
        wanted: list[Any] = [target] * batch
    elif isinstance(target, list):
        wanted = list(target)
        if len(wanted) != batch:
            raise TargetError(
                f"There are {len(wanted)} targets for {batch} samples. Pass one per sample, or a single one for all."
            )
    else:
        raise TargetError(
            "A target is None, an int, (position, class), a list of these, (name of an output, one of these) or a "
            f"callable, not {type(target).__name__}."
        )
    places = tuple(_place(one, sample, logits, mask, scored) for sample, one in enumerate(wanted))
    return Selection(places, field=field)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def last_position(mask: Tensor | None, sample: int, length: int) -> int:
    """The last position that is not padding."""
    if mask is None or mask.ndim != 2 or mask.shape[1] != length:
        return length - 1
    kept = mask[sample].nonzero()
    return int(kept[-1]) if len(kept) else length - 1


def _argmax(logits: Tensor, mask: Tensor | None, scored: Scored) -> tuple[tuple[int, ...], ...]:
    index: list[tuple[int, ...]] = []
    for sample, scores in enumerate(logits):
        if scores.ndim == 2 and scored.kind is Kind.NEXT_TOKEN:
            position = last_position(mask, sample, len(scores))
            index.append((position, int(scores[position].argmax())))
        else:
            kept = _positions_asked(mask, sample, scores, scored)
            if kept is not None:
                scores = scores.masked_fill(~kept.view(-1, *(1,) * (scores.ndim - 1)), float("-inf"))
            index.append(tuple(int(i) for i in torch.unravel_index(scores.argmax(), scores.shape)))
    return tuple(index)


def _positions_asked(mask: Tensor | None, sample: int, scores: Tensor, scored: Scored) -> Tensor | None:
    """Which positions of [positions, classes], or of [positions], are no padding, or only those that are masked where
    there are some.
    """
    if scored.masked is not None and bool(scored.masked[sample].any()):
        return scored.masked[sample]
    by_position = scores.ndim == 2 or scored.kind in (Kind.START, Kind.END)
    fits = by_position and mask is not None and mask.ndim == 2 and mask.shape[1] == len(scores)
    return mask[sample] != 0 if fits and mask is not None else None


def _place(one: Any, sample: int, logits: Tensor, mask: Tensor | None, scored: Scored) -> tuple[int, ...]:
    axes = logits.shape[1:]
    if _is_index(one) and len(axes) == 2 and scored.kind is Kind.NEXT_TOKEN:
        one = (last_position(mask, sample, axes[0]), one)
    if _is_index(one) and len(axes) == 2 and scored.masked is not None:
        one = (_only_masked(scored.masked[sample], sample, one), one)
    place = one if isinstance(one, (tuple, list)) else (one,)
    if not all(_is_index(i) for i in place):
        raise TargetError(f"Target {one!r} is not an int or a tuple of ints.")
    if len(place) != len(axes):
        form = "(position, class)" if len(axes) == 2 else "a class" if len(axes) == 1 else f"{len(axes)} indices"
        raise TargetError(f"Target {one!r} does not fit logits of shape {tuple(logits.shape)}: it must be {form}.")
    for index, size, name in zip(
        place, axes, ("position", "class") if len(axes) == 2 else ("class",) * len(axes), strict=True
    ):
        if not -size <= index < size:
            raise TargetError(
                f"Target {name} {index} of sample {sample} is out of range: there are {size} (0 to {size - 1})."
            )
    return tuple(index % size for index, size in zip(place, axes, strict=True))


def _only_masked(masked: Tensor, sample: int, one: int) -> int:
    places = masked.nonzero().flatten().tolist()
    if len(places) != 1:
        which = f"at positions {', '.join(map(str, places))}" if places else "nowhere"
        raise TargetError(
            f"Target {one} of sample {sample} is a token, but that has a mask token {which}: say the position, "
            f"(position, {one})."
        )
    return int(places[0])


def call_target(function: Callable[[Any], Tensor], outputs: Any) -> Tensor:
    """The scalars of a callable target, [samples].

    Raises :class:`TargetError` unless it gives one differentiable scalar per sample.
    """
    try:
        value = function(outputs)
    except FxlrpError:
        raise
    except Exception as error:  # whatever the user's own code does
        raise TargetError(
            f"The callable target itself fails on the model's output ({type(outputs).__name__}): "
            f"{type(error).__name__}: {error}. It must be a function of it that writes to nothing."
        ) from error
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.requires_grad:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            "A callable target must return a tensor of shape [batch] computed from the outputs, one scalar per sample; "
            f"it gave {shape}."
        )
    return value


@dataclass(frozen=True, eq=False)
class Handed:
    """Relevance R of the logits y that is handed in, in their shape, in the place of a target: sum y (R / y) over the
    entries of a sample, whose gradient carries R.
    """

    relevance: Tensor

    def __call__(self, outputs: Any) -> Tensor:
        """The sums [batch]. Raises :class:`TargetError` for another shape, and for relevance of an output of 0."""
        logits = logits_of(outputs)
        if not isinstance(self.relevance, Tensor):
            raise TargetError(f"relevance= is a {type(self.relevance).__name__}: pass a tensor of the logits' shape.")
        given = self.relevance.detach().to(logits)
        if given.shape != logits.shape:
            raise TargetError(
                f"relevance= has the shape {list(given.shape)}: it must be that of the logits, {list(logits.shape)}."
            )
        if not bool(given.isfinite().all()):
            raise TargetError("relevance= holds numbers that are not finite.")
        none = given == 0
        if bool(((logits == 0) & ~none).any()):
            raise TargetError(
                "relevance= is handed in at an output that is exactly 0, which cannot carry any: R = y g with y = 0."
            )
        share = torch.where(none, given, given / logits.detach())
        return torch.where(none, 0.0, logits * share).flatten(1).sum(1)
