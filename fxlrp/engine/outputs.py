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
    """The output of this name or, without one, ``logits``, else the first float tensor; and its name.

    Raises :class:`TargetError` for a name that no float output has, and for an object that holds none.
    """
    found = dict(_floats(outputs))
    if name is None:
        name = "logits" if "logits" in found else next(iter(found), None)
    elif name not in found:
        raise TargetError(
            f"The model's output ({type(outputs).__name__}) has no scores '{name}'.{nearest(name, found)}"
        )
    if name is None or found[name].ndim == 0:
        raise TargetError(
            f"The model's output ({type(outputs).__name__}) holds no logits. Pass target=callable, a function of the "
            "output that returns one scalar per sample."
        )
    return name, found[name]


def _floats(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The float tensors of an output object by name, in order; of a sequence by number, of a tensor by ""."""
    if isinstance(outputs, Mapping):
        pairs = [(str(key), value) for key, value in outputs.items()]
    elif isinstance(outputs, (tuple, list)):
        pairs = [(str(index), value) for index, value in enumerate(outputs)]
    else:
        pairs = [("", outputs)]
    if "logits" not in dict(pairs):
        pairs = [("logits", getattr(outputs, "logits", None)), *pairs]
    yield from ((name, value) for name, value in pairs if isinstance(value, Tensor) and value.is_floating_point())


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
        ids = given.get(conventions.first_input) if conventions.preferred is not None else None
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
    ids = given.get(conventions.first_input)
    if not isinstance(mask_id, int) or not isinstance(ids, Tensor) or ids.shape != logits.shape[:2]:
        return None
    return ids == mask_id


def _at(position: int, tokens: Sequence[str] | None) -> str:
    if tokens is None or not 0 <= position < len(tokens):
        return f" at position {position}"
    return f" at token '{tokens[position]}' (position {position})"


def _spelled(index: int, tokenizer: Any) -> str:
    return f"'{tokenizer.decode([index])}'" if hasattr(tokenizer, "decode") else str(index)
