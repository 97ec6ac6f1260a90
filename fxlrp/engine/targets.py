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

from fxlrp.errors import TargetError

Target = int | Sequence[Any] | Tensor | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Selection:
    """Entries of the logits, (position,) class each: one per sample, or of the ``samples`` that are named."""

    index: tuple[tuple[int, ...], ...]
    samples: tuple[int, ...] | None = None

    def __call__(self, outputs: Any, scores: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The chosen logits [entries], or entries of the ``scores`` that a function makes of all logits."""
        logits = logits_of(outputs)
        found = logits if scores is None else scores(logits)
        # One gather for the batch: a chain of selections would allocate the logits' gradient anew for each sample.
        samples = self.samples or range(len(self.index))
        axes = zip(*((sample, *place) for sample, place in zip(samples, self.index, strict=True)), strict=True)
        return found[tuple(torch.tensor(axis, device=found.device) for axis in axes)]


def logits_of(outputs: Any) -> Tensor:
    """The logits of an output object: its ``logits``, or the first float tensor of a tensor, tuple or mapping."""
    found = getattr(outputs, "logits", None)
    if found is None:
        values = (
            outputs.values()
            if isinstance(outputs, dict)
            else outputs
            if isinstance(outputs, (tuple, list))
            else (outputs,)
        )
        found = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)
    if not isinstance(found, Tensor) or found.ndim == 0:
        raise TargetError(
            f"The model's output ({type(outputs).__name__}) holds no logits. Pass target=callable, a function of the "
            "output that returns one scalar per sample."
        )
    return found


def resolve(target: Target, outputs: Any, mask: Tensor | None, generates: bool) -> Selection:
    """Turn a target into one entry of the logits per sample.

    ``None`` is the arg-max: of the last position that is not padding where the model generates text, else over
    everything. Raises :class:`TargetError` if out of range or of the wrong shape.
    """
    logits = logits_of(outputs).detach()
    if logits.ndim == 1:
        raise TargetError(
            "The logits have no batch axis: they must be [batch, classes] or [batch, positions, classes]."
        )
    batch = len(logits)
    if mask is not None and len(mask) != batch:  # rows of the logits are no samples (several codebooks of one)
        mask = None
    if isinstance(target, Tensor):
        target = target.tolist()
    if target is None:
        return _argmax(logits, mask, generates)
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
            f"A target is None, an int, (position, class), a list of these or a callable, not {type(target).__name__}."
        )
    return Selection(tuple(_place(one, sample, logits, mask, generates) for sample, one in enumerate(wanted)))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def last_position(mask: Tensor | None, sample: int, length: int) -> int:
    """The last position that is not padding."""
    if mask is None or mask.ndim != 2 or mask.shape[1] != length:
        return length - 1
    kept = mask[sample].nonzero()
    return int(kept[-1]) if len(kept) else length - 1


def _argmax(logits: Tensor, mask: Tensor | None, generates: bool) -> Selection:
    index: list[tuple[int, ...]] = []
    for sample, scores in enumerate(logits):
        if scores.ndim == 2 and generates:
            position = last_position(mask, sample, len(scores))
            index.append((position, int(scores[position].argmax())))
        else:
            if scores.ndim == 2 and mask is not None and mask.ndim == 2 and mask.shape[1] == len(scores):
                scores = scores.masked_fill(mask[sample][:, None] == 0, float("-inf"))
            index.append(tuple(int(i) for i in torch.unravel_index(scores.argmax(), scores.shape)))
    return Selection(tuple(index))


def _place(one: Any, sample: int, logits: Tensor, mask: Tensor | None, generates: bool) -> tuple[int, ...]:
    axes = logits.shape[1:]
    if _is_index(one) and len(axes) == 2 and generates:
        one = (last_position(mask, sample, axes[0]), one)
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


def call_target(function: Callable[[Any], Tensor], outputs: Any, batch: int) -> Tensor:
    """The scalars of a callable target. Raises :class:`TargetError` unless it gives one differentiable scalar
    per sample.
    """
    value = function(outputs)
    if not isinstance(value, Tensor) or value.shape != (batch,) or not value.requires_grad:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            f"A callable target must return a tensor of shape [{batch}] computed from the outputs; it gave {shape}."
        )
    return value


def label(place: tuple[int, ...], names: dict[int, str] | None, tokenizer: Any) -> str:
    """How a report calls an explained entry."""
    index = place[-1]
    if len(place) == 1:
        return (names or {}).get(index, f"class {index}") if names else f"class {index}"
    if tokenizer is not None and hasattr(tokenizer, "convert_ids_to_tokens"):
        return f"token '{tokenizer.decode([index])}' after position {place[0]}"
    return f"class {index} at position {place[0]}"
