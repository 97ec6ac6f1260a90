"""Comparing rulesets on texts: in go a file of labelled sentences and names of metrics, out come batches and protocols
for :func:`fxlrp.compare`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, InputError, nearest
from fxlrp.evaluate import AreaBetween, Batch, Conservation, Eraser, LeaveOneOut, Perturbation, Protocol
from fxlrp.shipped.checkpoints import class_index, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMN = "label"
BATCH_SIZE = 16


@dataclass(frozen=True)
class LabelledText:
    """A text, the class that its file gives it, if any, and the line that it stands on."""

    text: str
    label: str | None
    line: int


def read_texts(path: Path, limit: int | None = None) -> list[LabelledText]:
    """The first ``limit`` texts of a file: .tsv (no quoting) and .csv with a header, or .jsonl with an object a line.

    The text is in the column 'sentence' or 'text', its class in 'label', if there is such a column. Raises
    :class:`InputError` for another kind of file, a missing column, a line that is no text and a file without any.
    """
    if path.suffix not in _READERS:
        raise InputError(f"'{path}' is not a table of texts.{nearest(path.suffix, _READERS)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [_text(path, line, row) for line, row in islice(_READERS[path.suffix](file), limit)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error
    if not found:
        raise InputError(f"'{path}' holds no text: after the header one line per text is needed.")
    return found


Rows = Iterator[tuple[int, Mapping[str, Any]]]


def _table(delimiter: str, quoting: Literal[0, 3]) -> Callable[[Iterable[str]], Rows]:
    def rows(file: Iterable[str]) -> Rows:
        reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
        for row in reader:
            yield reader.line_num, row

    return rows


def _objects(file: Iterable[str]) -> Rows:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"Line {line} is not JSON: {error}.") from error
            yield line, row if isinstance(row, dict) else {}


#: By ending of the file's name. Sentences in .tsv files have lone quotation marks.
_READERS: Mapping[str, Callable[[Iterable[str]], Rows]] = {
    ".tsv": _table("\t", csv.QUOTE_NONE),
    ".csv": _table(",", csv.QUOTE_MINIMAL),
    ".jsonl": _objects,
}


def _text(path: Path, line: int, row: Mapping[str, Any]) -> LabelledText:
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        known = ", ".join(f"'{name}'" for name in row) or "none"
        raise InputError(f"'{path}' has no column 'sentence' or 'text' (line {line}); its columns are {known}.")
    text, label = row[column], row.get(LABEL_COLUMN)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"'{path}', line {line}: the column '{column}' holds no text.")
    if label is None and LABEL_COLUMN in row:
        raise InputError(f"'{path}', line {line}: the text has no label.")
    return LabelledText(text, None if label is None else str(label).strip(), line)


def batches_of(
    texts: Sequence[LabelledText] | Sequence[str], tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel
) -> list[Any]:
    """Texts as the model takes them: plain ones as one batch, those of a file as batches of ``BATCH_SIZE``, with their
    labels as numbers of classes where all have one.

    Raises :class:`FxlrpError` with the line of a text that is too long, or of a label that the model does not have.
    """
    labelled = [each for each in texts if isinstance(each, LabelledText)]
    if not labelled:
        return [encode([str(each) for each in texts], tokenizer, network)]
    return [
        Batch(_encoded(part, tokenizer, network), _labels(part, tokenizer, network))
        for part in (labelled[i : i + BATCH_SIZE] for i in range(0, len(labelled), BATCH_SIZE))
    ]


def _encoded(texts: Sequence[LabelledText], tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> Any:
    try:
        return encode([each.text for each in texts], tokenizer, network)
    except InputError as error:
        raise InputError(f"Lines {texts[0].line} to {texts[-1].line}: {error}") from error


def _labels(
    texts: Sequence[LabelledText], tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel
) -> torch.Tensor | None:
    found = []
    classes = getattr(network.config, "num_labels", 0)
    for each in texts:
        if each.label is None:
            return None
        try:
            number = class_index(each.label, network, tokenizer)
        except FxlrpError as error:
            raise InputError(f"Line {each.line}: {error}") from error
        if each.label.lstrip("-").isdecimal() and not 0 <= number < classes:
            raise InputError(f"Line {each.line}: label {number} is none of the model's {classes} classes.")
        found.append(number)
    return torch.tensor(found)


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise InputError(
        "The tokenizer has neither [UNK] nor [MASK], and perturbation needs one of them to put in a word's place."
    )


#: The protocols that apply to any classifier of texts, by the names of ``fxlrp compare --metrics``.
METRICS: Mapping[str, Callable[[PreTrainedTokenizerBase], Protocol]] = {
    "activation": lambda tokenizer: Perturbation("most", "add", replace=_unknown(tokenizer)),
    "pruning": lambda tokenizer: Perturbation("absolute-least", "remove", replace=_unknown(tokenizer)),
    "abpc": lambda tokenizer: AreaBetween(replace=_unknown(tokenizer)),
    "eraser": lambda tokenizer: Eraser(replace=_unknown(tokenizer)),
    "leave-one-out": lambda tokenizer: LeaveOneOut(replace=_unknown(tokenizer)),
    "conservation": lambda tokenizer: Conservation(),
}
#: Those that run unless others are named.
USUAL_METRICS = ("activation", "pruning")


def named_metrics(names: Sequence[str]) -> list[Callable[[PreTrainedTokenizerBase], Protocol]]:
    """What makes the protocols of these names. Raises :class:`InputError` for a name that is none, with the nearest."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"There is no metric '{name}'.{nearest(name, METRICS)}")
    return [METRICS[name] for name in names]


def of_length(encoded: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Inputs of a text of so many tokens, of which the sizes alone mean anything."""
    return {name: value[:1, :1].expand(1, tokens) for name, value in encoded.items()}
