"""Rulesets in words: in goes a ruleset, out come its lines with their formulas, its settings and its read-out as
sentences, which the command line prints and the manual's pages are written from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import singledispatch
from itertools import groupby
from pathlib import Path
from typing import Any

from fxlrp.graph.operator_classes import ANY, CLASSES
from fxlrp.rules import Rule
from fxlrp.spec.citation import Citation, Switch
from fxlrp.spec.lines import Line, Where
from fxlrp.spec.readings import AttentionReading, InputReading, Reading, StreamsReading
from fxlrp.spec.ruleset import Ruleset, origins, ruleset


@dataclass(frozen=True)
class DescribedLine:
    """One rule of a ruleset: what it matches and where, the rule with its formula, source and those parameters and
    other settings of the line that are not their defaults, the ruleset that the line stands in, and whether lines above
    it leave it nothing.
    """

    match: str
    where: str
    rule: str
    params: Mapping[str, Any]
    formula: str
    source: str
    origin: str
    overruled: bool

    @property
    def spelled(self) -> str:
        """The rule with those parameters."""
        options = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.rule}({options})" if options else self.rule


@dataclass(frozen=True)
class Description:
    """A ruleset in words; ``settings`` are (title, sentence) in the order in which they are read."""

    ruleset: Ruleset
    lines: tuple[DescribedLine, ...]
    settings: tuple[tuple[str, str], ...]

    @property
    def blocks(self) -> list[tuple[DescribedLine, list[str]]]:
        """Neighbouring lines that differ in nothing but what they match, as one: its first line, and all matches."""
        groups = groupby(self.lines, lambda e: (e.where, e.spelled, e.origin, e.overruled))
        return [(found[0], [line.match for line in found]) for found in (list(group) for _, group in groups)]


def describe(source: str | Path | Mapping[str, Any] | Ruleset) -> Description:
    """What there is to say about a ruleset. Raises :class:`fxlrp.RulesetError` as :func:`fxlrp.ruleset` does."""
    chosen = ruleset(source)
    lines = tuple(
        _line(entry, origin, chosen.rules[:place])
        for place, (entry, origin) in enumerate(zip(chosen.rules, origins(source), strict=True))
    )
    return Description(chosen, lines, _settings(chosen))


def _line(entry: Line, origin: str, before: Sequence[Line]) -> DescribedLine:
    rule, params = entry.bound
    return DescribedLine(
        match=entry.match,
        where=" ".join(f"{k}={v}" for k, v in entry.where.model_dump(by_alias=True, exclude_defaults=True).items()),
        rule=rule.name,
        params={key: value for key, value in params.items() if value != rule.parameters[key].default} | _others(entry),
        formula=formula(rule),
        source=str(rule.source),
        origin=origin,
        overruled=any(_overrules(earlier, entry) for earlier in before),
    )


def _others(entry: Line) -> dict[str, Any]:
    """What a line says beside match, place, rule and parameters."""
    return entry.model_dump(mode="json", exclude_defaults=True, exclude={"match", "where", "rule", "params"})


def _overrules(earlier: Line, later: Line) -> bool:
    """Whether ``earlier`` takes all that ``later`` matches, wherever it stands."""
    own = CLASSES.get(later.match)
    wider = own.lineage if own is not None else ()
    within = (later.match, later.match.split(".")[0], *map(str, (*wider, ANY)))
    if earlier.where != Where() or earlier.match not in within:
        return False
    taking, left, category = earlier.bound[0], later.bound[0], later.category
    return ANY in taking.on or set(left.on) <= set(taking.on) or (category is not None and taking.fits(category))


def formula(rule: Rule) -> str:
    """The formula of a rule: the first paragraph of its docstring on one line."""
    return " ".join(rule.doc.split("\n\n")[0].split()).replace("``", "`")


def short(citation: Citation | None) -> str:
    """A citation as it stands in running text: first author and year."""
    if citation is None:
        return ""
    first, *others = citation.authors.split(",")
    return f"{first}{' et al.' if others else ''} {citation.year}"


def override(switch: Switch) -> str:
    """The call that selects what is not the default."""
    plain = all(key.isidentifier() for key in switch.override)
    options = ", ".join(f"{key}={value!r}" for key, value in switch.override.items())
    return f".override({options})" if plain else f".override(**{switch.override!r})"


MESSAGES = {
    "gradient": "the gradient g of each value x, whose relevance is R = x g",
    "relevance": "relevance R itself, from the output on",
}
BIASES = {
    "source": "an additive constant that receives relevance as an input does",
    "distribute": "shared out among a layer's inputs, in proportion to their contributions",
}


#: Fields of a ruleset that have a place of their own in its description.
SAID = {
    "fxlrp",
    "name",
    "version",
    "title",
    "description",
    "citation",
    "extends",
    "rules",
    "message",
    "bias",
    "seed",
} | {*("temperature", "readout", "fallback", "notes", "conserves", "switches", "domain")}


def _settings(chosen: Ruleset) -> tuple[tuple[str, str], ...]:
    seed = chosen.seed.sentence
    if chosen.temperature != 1:
        seed += f", of outputs divided by {chosen.temperature:g}"
    others = chosen.model_dump(mode="json", exclude_defaults=True, exclude=SAID)
    return (
        ("Law", chosen.conserves),
        ("Message", MESSAGES[chosen.message]),
        ("Relevance begins as", seed),
        ("Answer", readout(chosen.readout)),
        ("A bias is", BIASES.get(chosen.bias, chosen.bias)),
        ("Also", ", ".join(f"{name}: {_plain(value)}" for name, value in others.items())),
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def readout(reading: Reading) -> str:
    """How messages become the answer, in words, with the settings that are not defaults."""
    settings = {
        name: value
        for name, field in type(reading).model_fields.items()
        if name != "kind" and (value := getattr(reading, name)) != field.default
    }
    listed = ", ".join(f"{name}: {str(value).lower()}" for name, value in settings.items())
    return _words(reading) + (f" ({listed})" if listed else "")


@singledispatch
def _words(reading: Reading) -> str:
    """A reading without words of its own is described by its docstring."""
    first = " ".join((type(reading).__doc__ or type(reading).__name__).split("\n\n")[0].split())
    return re.sub(r"[.]$", "", first.replace("``", ""))


@_words.register
def _(reading: InputReading) -> str:
    score = {"relevance": "relevance R = x g", "gradient": "the gradient g"}.get(reading.score, reading.score)
    reduce = {"sum": "summed", "l1": "summed by absolute value", "squared": "summed by square"}.get(
        reading.reduce, reading.reduce
    )
    if reading.reduce == "norm":
        return f"{score} at every input, of token ids its length over the features of each token's embedding"
    channels = ", and over the channels of images" if reading.channels == "reduce" else ""
    return f"{score} at every input, of token ids at their embeddings, {reduce} over the features of each{channels}"


@_words.register
def _(reading: AttentionReading) -> str:
    heads = {
        "mean": "averaged over heads",
        "each": "by head, the heads summed at the end",
        "gradient_row": "each head weighted by its mean gradient over that row, the mean over heads clamped at 0",
        "gradient_matrix": "each head weighted by its mean gradient, the mean over heads clamped at 0",
    }.get(reading.heads, reading.heads)
    entry = {
        "keep": "",
        "zero": "with 0 in place of that token's own entry",
        "minimum": "with the least entry of the row in place of that token's own",
    }.get(reading.row_token, reading.row_token)
    steps = [
        f"one matrix a layer of {MATRICES[reading.matrix]}",
        "negative entries set to 0" if reading.positive else "",
        heads,
        "plus the identity" if reading.identity else "",
        "rows divided by their sums" if reading.normalise else "",
        _layers(reading.start_layer, reading.end_layer),
        _row(reading.row, reading.tokens),
        entry,
        "scaled to between 0 and 1" if reading.rescale else "",
    ]
    return ", ".join(step for step in steps if step)


@_words.register
def _(reading: StreamsReading) -> str:
    steps = [
        f"relevance between streams of tokens, updated at every attention with the positive part of "
        f"{MATRICES[reading.matrix]}, averaged over heads",
        "in cross-attention with rows divided by their sums" if reading.normalise else "",
        _layers(reading.start_layer, None, "from the first attention"),
        _row(reading.row, reading.tokens),
    ]
    return ", ".join(step for step in steps if step)


MATRICES = {
    "weights": "the attention weights A",
    "relevance": "the relevance R_A of the attention weights",
    "gradient": "grad A * A, the attention weights times their gradient in the unmodified model",
    "gradient_relevance": "grad A * R_A, the relevance of the attention weights times their gradient in the unmodified "
    "model",
}


def _layers(start: int, end: int | None, whole: str = "multiplied over all layers, the last leftmost") -> str:
    if (start, end) == (0, None):
        return whole
    if (start, end) == (-1, None):
        return "of the last layer"
    return (
        f"of layers {start} up to {'the last' if end is None else f'but not including {end}'} (negative: from the end)"
    )


def _row(row: int | str, tokens: str) -> str:
    which = (
        "the row of the token that the explained output is computed from (a class token, the explained position; the "
        "mean where it is computed from several)"
        if row == "target"
        else f"row {row}"
    )
    return f"read at {which}" + (", tokens that are not made of the input left out" if tokens == "input" else "")


def as_plain(described: Description) -> dict[str, Any]:
    """The ruleset as it is written, each rule with its formula, source and origin, and the settings in words."""
    plain: dict[str, Any] = described.ruleset.model_dump(mode="json", by_alias=True)
    for entry, line in zip(plain["rules"], described.lines, strict=True):
        entry.update({key: asdict(line)[key] for key in ("formula", "source", "origin", "overruled")})
    return plain | {"in_words": dict(described.settings)}
