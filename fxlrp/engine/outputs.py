"""What the output is that is explained, as users know it: a class, a class at a token, the next token, a pixel.

In: a model's output object, its configuration, conventions and inputs. Out: :class:`Scored`, which targets ask for
default places, and reports for names. Where a model says nothing of itself, entries are classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from fxlrp.capture import torch_private as private
from fxlrp.capture.calling import below, fields_of
from fxlrp.engine.conventions import Conventions
from fxlrp.errors import TargetError, nearest


class Kind(Enum):
    """What an entry of an output is."""

    CLASS = "class"
    CHOICE = "choice"
    TOKEN_CLASS = "class at a token"
    NEXT_TOKEN = "next token"
    MASKED_TOKEN = "token at its own position"
    START = "start of an answer"
    END = "end of an answer"
    PIXEL = "pixel"
    BOX = "class of a box"
    HIDDEN = "hidden unit"


#: Outputs of transformers that are named after their task; the name says what their entries are.
_NAMED = {
    "start_logits": Kind.START,
    "end_logits": Kind.END,
    "last_hidden_state": Kind.HIDDEN,
    "encoder_last_hidden_state": Kind.HIDDEN,
    "pooler_output": Kind.HIDDEN,
}
_BOXES = "pred_boxes"


@dataclass(frozen=True)
class Scored:
    """The output whose entries are explained: what they are and what their classes are called.

    ``name`` is its name in the output object, "" of a bare tensor. ``masked`` [batch, positions] is true at mask
    tokens, where the model fills these in and it is known which they are.
    """

    kind: Kind = Kind.CLASS
    name: str = ""
    classes: Mapping[int, str] = field(default_factory=dict)
    masked: Tensor | None = None

    @staticmethod
    def of(
        outputs: Any, name: str | None, config: Any, conventions: Conventions, given: Mapping[str, Any], tokenizer: Any
    ) -> Scored:
        """What the output of this ``name`` is, or the one that is explained unless another is named."""
        chosen, logits = named_output(outputs, name)
        names = getattr(config, "id2label", None) or {}
        kind = _kind(outputs, chosen, logits, config, conventions, given)
        axis = 1 if kind in (Kind.CLASS, Kind.PIXEL) and logits.ndim > 1 else -1
        classes = {int(key): str(value) for key, value in names.items()} if len(names) == logits.shape[axis] else {}
        if kind is Kind.BOX:  # the last class is that of no object
            classes = {int(key): str(value) for key, value in names.items()}
        masked = _masked(logits, config, conventions, given, tokenizer) if kind is Kind.MASKED_TOKEN else None
        return Scored(kind, chosen, classes, masked)

    def label(self, place: Sequence[int], tokenizer: Any = None, tokens: Sequence[str] | None = None) -> str:
        """How a report calls the entry at ``place``, (position,) class, of a sample with these ``tokens``."""
        if not place:
            return f"output '{self.name}'" if self.name else "output"
        *before, index = place
        found = self.classes.get(index, f"class {index}")
        if self.kind is Kind.CHOICE:
            return f"choice {index}"
        if self.kind in (Kind.START, Kind.END):
            return f"{self.kind.value.replace('an ', 'the ', 1)}{_at(index, tokens)}"
        if self.kind is Kind.PIXEL:
            *channel, row, column = place
            which = "" if not channel else f"{self.classes.get(channel[0], f'channel {channel[0]}')} at "
            return f"{which}pixel (row {row}, column {column})"
        if self.kind is Kind.HIDDEN:
            return f"hidden unit {index}" + (_at(before[0], tokens) if len(before) == 1 else "")
        if len(before) != 1:
            return found if not before else f"{found} at {tuple(before)}"
        if self.kind is Kind.BOX:
            return f"{found} of box {before[0]}"
        if self.kind is Kind.NEXT_TOKEN:
            return f"next token {_spelled(index, tokenizer)} after position {before[0]}"
        if self.kind is Kind.MASKED_TOKEN:
            return f"token {_spelled(index, tokenizer)} at position {before[0]}"
        return f"{found}{_at(before[0], tokens)}"


def named_output(outputs: Any, name: str | None = None) -> tuple[str, Tensor]:
    """The output of this name or, without one, the only one, ``logits``, or the first of a library's output; and its
    name. A single number is an output of one sample.

    Raises :class:`TargetError` for a name that no float output has, an object that holds none, and one that holds
    several of which none is known to be the answer.
    """
    wanted = "logits" if name is None else name
    first = next((pair for pair in _floats("", outputs) if pair[0] == wanted), None)
    if first is not None:  # large outputs, such as caches, are not looked through
        return _at_least_one(*first)
    found, kind = dict(_floats("", outputs)), type(outputs).__name__
    if not found:
        raise TargetError(
            f"The model's output ({kind}) holds no logits. Pass target=callable, a function of the output that returns "
            "one scalar per sample."
        )
    if name is not None and found.keys() == {""}:
        raise TargetError(f"The model's output is one tensor, which has no name: leave '{name}' out of the target.")
    if name is not None:
        raise TargetError(f"The model's output ({kind}) has no scores '{name}'.{nearest(name, found)}")
    only = next(iter(found.items()))
    if len(found) > 1 and not private.is_library_output(outputs):
        choices = ", ".join(f"'{each}' {list(value.shape)}" for each, value in found.items())
        raise TargetError(
            f"The model's output ({kind}) holds several values: {choices}. Say which is explained: "
            f"target=('{only[0]}', 1) for its class 1, ('{only[0]}',) for its largest entry."
        )
    return _at_least_one(*only)


def _at_least_one(name: str, value: Tensor) -> tuple[str, Tensor]:
    """An output with a first axis of samples: a single number is one sample's."""
    return name, value if value.ndim else value.unsqueeze(0)


def _floats(path: str, outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The float tensors of an output object by name, in order, each once; parts of parts by their path."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield path, outputs
        return
    held = dict(zip(_places(outputs), outputs, strict=True)) if isinstance(outputs, (tuple, list)) else outputs
    held = held if isinstance(held, Mapping) else fields_of(held) or {}
    for name, value in held.items():
        yield from _floats(below(path, name), value)


def _places(outputs: tuple[Any, ...] | list[Any]) -> Sequence[Any]:
    """What the entries of a sequence are called: a named tuple's by its names."""
    return getattr(outputs, "_fields", range(len(outputs)))


def _kind(
    outputs: Any, name: str, logits: Tensor, config: Any, conventions: Conventions, given: Mapping[str, Any]
) -> Kind:
    if name in _NAMED:
        return _NAMED[name]
    if logits.ndim == 4:
        return Kind.PIXEL
    if logits.ndim == 3 and isinstance(outputs, Mapping) and _BOXES in outputs:
        return Kind.BOX
    if logits.ndim == 2:
        ids = given.get(conventions.first_input or "") if conventions.preferred is not None else None
        choices = isinstance(ids, Tensor) and ids.ndim == 3 and tuple(ids.shape[:2]) == tuple(logits.shape)
        return Kind.CHOICE if choices and not ids.is_floating_point() else Kind.CLASS  # type: ignore[union-attr]
    if logits.ndim == 3 and name != "logits" and conventions.preferred is not None and _is_image(given, logits):
        return Kind.PIXEL
    if conventions.generates:
        return Kind.NEXT_TOKEN
    if logits.ndim == 3:
        return Kind.MASKED_TOKEN if logits.shape[-1] == _vocabulary(config) else Kind.TOKEN_CLASS
    return Kind.CLASS


def _is_image(given: Mapping[str, Any], values: Tensor) -> bool:
    """Whether values [batch, height, width] are made of an image."""
    images = (v for v in given.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim == 4)
    return any(len(image) == len(values) for image in images)


def _vocabulary(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "vocab_size", None)
    return found if isinstance(found, int) else None


def _masked(
    logits: Tensor, config: Any, conventions: Conventions, given: Mapping[str, Any], tokenizer: Any
) -> Tensor | None:
    mask_id = getattr(tokenizer, "mask_token_id", None)
    mask_id = getattr(config, "mask_token_id", None) if mask_id is None else mask_id
    ids = given.get(conventions.first_input or "")
    if not isinstance(mask_id, int) or not isinstance(ids, Tensor) or ids.shape != logits.shape[:2]:
        return None
    return ids == mask_id


def _at(position: int, tokens: Sequence[str] | None) -> str:
    if tokens is None or not 0 <= position < len(tokens):
        return f" at position {position}"
    return f" at token '{tokens[position]}' (position {position})"


def _spelled(index: int, tokenizer: Any) -> str:
    return f"'{tokenizer.decode([index])}'" if hasattr(tokenizer, "decode") else str(index)
