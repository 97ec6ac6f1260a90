"""Recurrent modules, padded and packed: the model's own values and final states, and a ledger that closes.

A packed sequence stands in the graph as a padded one whose state is held where a sample has ended
(:mod:`fxlrp.capture.packed`). That stand-in is compared with the model over every form of module, and
converted for a selection that has each form at least once.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import fxlrp
from fxlrp.capture import packed
from fxlrp.capture.twin import twin
from fxlrp.errors import RetraceWarning
from fxlrp.testing.weights import realistic

FEATURES, HIDDEN, LABELS, STEPS = 3, 4, 3, 5
RULESETS = ("conservative", "attnlrp", "ali2022")
KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "rnn, tanh": (nn.RNN, {}),
    "rnn, relu": (nn.RNN, {"nonlinearity": "relu"}),
}
LENGTHS = {"sorted": [4, 3, 1], "unsorted": [2, 4, 1], "full": [5, 5, 5]}


class Recurrent(nn.Module):
    """A recurrent module, mean of its outputs and its final states, linear heads.  x: [batch, steps, 3]."""

    def __init__(
        self,
        kind: str,
        state: bool = False,
        sort: bool = False,
        total: int | None = None,
        *,
        bidirectional: bool = False,
        num_layers: int = 1,
        batch_first: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        module, options = KINDS[kind]
        shape = {"bidirectional": bidirectional, "num_layers": num_layers, "batch_first": batch_first, "bias": bias}
        self.cell = module(FEATURES, HIDDEN, **options, **shape)
        self.state, self.sort, self.total = state, sort, total
        widths = (self.cell.proj_size or HIDDEN, HIDDEN)
        self.widths = widths if isinstance(self.cell, nn.LSTM) else widths[:1]
        self.directions = 2 if bidirectional else 1
        self.first = nn.ModuleList(nn.Linear(FEATURES, width) for width in self.widths)
        self.head = nn.Linear(self.directions * widths[0], LABELS)
        self.final = nn.ModuleList(nn.Linear(width, LABELS) for width in self.widths)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits, [batch, 3]."""
        axis = 1 if self.cell.batch_first else 0
        hx: Any = None
        if self.state:
            count = self.directions * self.cell.num_layers
            states = tuple(layer(x[:, 0]).expand(count, -1, -1) for layer in self.first)
            hx = states if len(states) == 2 else states[0]
        steps = x if axis else x.transpose(0, 1)
        if lengths is None:
            y, final = self.cell(steps, hx)
        else:
            packed = rnn.pack_padded_sequence(steps, lengths, bool(axis), enforce_sorted=self.sort)
            packed, final = self.cell(packed, hx)
            y, _ = rnn.pad_packed_sequence(packed, bool(axis), total_length=self.total)
        logits = self.head(y.mean(axis))
        for layer, part in zip(self.final, final if isinstance(final, tuple) else (final,), strict=True):
            logits = logits + layer(part).mean(0)
        return logits


def build(kind: str, seed: int = 0, **options: Any) -> Recurrent:
    return realistic(Recurrent(kind, **options).double().eval(), seed)


def inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS[name])
    return {"x": torch.randn(len(lengths), STEPS, FEATURES, dtype=torch.float64, generator=rng), "lengths": lengths}


def stand_in_error(model: nn.Module, given: dict[str, Tensor]) -> float:
    with torch.no_grad():
        expected = model(**given)
        stand_in = twin(model)
        with packed.unrolled_packing(stand_in):
            found = stand_in(**given)
    return float((found - expected).abs().max())


def all_forms() -> list[dict[str, Any]]:
    names = ("bidirectional", "num_layers", "batch_first", "state", "sort", "bias", "total")
    choice = (False, True)
    values = itertools.product(choice, (1, 2), choice, choice, choice, choice, (None, 7))
    return [dict(zip(names, chosen, strict=True)) for chosen in values]


@pytest.mark.parametrize("kind", KINDS)
def test_the_stand_in_computes_what_the_module_computes(kind: str) -> None:
    for form in all_forms():
        error = stand_in_error(build(kind, **form), inputs("sorted" if form["sort"] else "unsorted"))
        assert error < 1e-13, form


PLAIN = {}
FULL = {"bidirectional": True, "num_layers": 2, "batch_first": False, "state": True}
SORTED = FULL | {"sort": True, "total": STEPS}


def check(model: nn.Module, given: dict[str, Tensor]) -> fxlrp.ConvertedModel:
    """Values and ledger under every ruleset; relevance only where a sample has steps."""
    first = fxlrp.convert(model, "conservative")
    with torch.no_grad():
        expected = model(**given)
    for ruleset in RULESETS:
        result = first.with_ruleset(ruleset).attribute(given, target=1, ledger=True)
        assert result.ledger is not None
        assert (result.outputs - expected).abs().max() < 1e-12
        assert result.ledger.gap.abs().max() < 1e-10
        if "lengths" in given:
            ended = torch.arange(STEPS) >= given["lengths"][:, None]
            if not getattr(model, "state", False):
                assert (result.relevance[ended] == 0).all()
            assert (result.relevance[~ended].abs().sum(-1) > 0).all()
    return first


@pytest.mark.parametrize("form", [PLAIN, pytest.param(FULL, marks=pytest.mark.slow)], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded(kind: str, form: dict[str, Any]) -> None:
    check(build(kind, **form), {"x": inputs("full")["x"]})


@pytest.mark.parametrize("form", [PLAIN, pytest.param(SORTED, marks=pytest.mark.slow)], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed(kind: str, form: dict[str, Any]) -> None:
    model, given = build(kind, **form), inputs("sorted" if form else "unsorted")
    lrp = check(model, given)
    # Lengths are data: the same graph serves others, and other batches.
    other = inputs("full", seed=1)
    other = {"x": torch.cat([other["x"]] * 2), "lengths": torch.tensor([5, 4, 4, 2, 2, 1])}
    result = lrp.attribute(other, target=0, ledger=True)
    assert (result.outputs - model(**other)).abs().max() < 1e-12
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-10
    assert lrp.captures == 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("lstm", "gru") else pytest.mark.slow) for kind in KINDS]
)
def test_a_packed_sample_is_explained_as_if_it_stood_alone_and_padded(kind: str) -> None:
    # A GRU gates W h + b of the state. Backwards, that state is no constant where any sample goes on, so b is a
    # source of half of that product, where alone it would be a factor of it: forwards the two agree.
    model, given = build(kind, bidirectional=kind != "gru"), inputs("unsorted")
    together = fxlrp.convert(model, "attnlrp").attribute(given, target=1).relevance
    # The mean runs over the longest sample of a batch: one of that length is the same in both.
    sample, length = 1, max(LENGTHS["unsorted"])
    alone = fxlrp.convert(model, "attnlrp").attribute({"x": given["x"][sample, None, :length]}, target=1).relevance
    assert (together[sample, :length] - alone[0]).abs().max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_packed_batch_do_not_mix(kind: str) -> None:
    lrp = fxlrp.convert(build(kind, total=STEPS, **FULL), "attnlrp")
    given, others = inputs("unsorted"), inputs("full", seed=1)
    together = lrp.attribute(given, target=1).relevance
    for sample in range(len(together)):
        mixed = {name: torch.cat([values[sample, None], others[name]]) for name, values in given.items()}
        assert (lrp.attribute(mixed, target=1).relevance[0] - together[sample]).abs().max() < 1e-12
        alone = {name: values[sample, None] for name, values in given.items()}
        assert (lrp.attribute(alone, target=1).relevance[0] - together[sample]).abs().max() < 1e-12
    assert lrp.captures == 1


def test_ignored_lengths_and_a_state_that_is_not_held_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build("lstm", bidirectional=True, total=STEPS), inputs("unsorted")
    with monkeypatch.context() as mutant:
        mutant.setattr(packed.PackedLayout, "of", _all_present(packed.PackedLayout.of))
        assert stand_in_error(model, given) > 1e-3
    with monkeypatch.context() as mutant:
        mutant.setattr(packed.torch, "where", lambda condition, new, old: new)
        assert stand_in_error(model, given) > 1e-3
    assert stand_in_error(model, given) < 1e-13


def _all_present(original: Any) -> Any:
    return lambda lengths, steps: original(torch.full_like(lengths, steps), steps)


class OnData(nn.Module):
    """Packed ids; embedding, normalisation and a sum over the packed entries; two modules in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, FEATURES)
        self.first, self.second = nn.LSTM(FEATURES, HIDDEN), nn.GRU(HIDDEN, HIDDEN, bidirectional=True)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(2 * HIDDEN, LABELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        packed = rnn.pack_padded_sequence(input_ids, attention_mask.sum(1).cpu(), True, enforce_sorted=False)
        packed, _ = self.first(packed._replace(data=self.embedding(packed.data)))
        packed, last = self.second(packed._replace(data=self.norm(packed.data)))
        y, lengths = rnn.pad_packed_sequence(packed, True)
        here = torch.arange(y.shape[1]) < lengths[:, None]
        weights = y.sum(-1).masked_fill(~here, -1e9).softmax(1)
        pooled = torch.einsum("bt,btd->bd", weights, y) + last.transpose(0, 1).reshape(y.shape[0], -1)
        return self.head(pooled * (1 + packed.data.mean()))


def test_operations_on_packed_entries_are_exact() -> None:
    model = realistic(OnData().double().eval(), 0)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    given = {"input_ids": torch.arange(15).reshape(3, 5) % 11, "attention_mask": mask}
    first = fxlrp.convert(model, "conservative")
    with torch.no_grad():
        expected = model(**given)
    for ruleset in RULESETS:
        result = first.with_ruleset(ruleset).attribute(given, ledger=True)
        assert result.ledger is not None
        assert (result.outputs - expected).abs().max() < 1e-12
        assert result.ledger.gap.abs().max() < 1e-10


class Listed(nn.Module):
    """Lengths as a list, entries taken apart again: the batch is fixed, the lengths are not."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        packed = rnn.pack_padded_sequence(x, lengths.tolist(), True, enforce_sorted=False)
        return self.head(torch.stack([sample.mean(0) for sample in rnn.unpack_sequence(self.cell(packed)[0])]))


def test_lengths_as_a_list() -> None:
    model, given = realistic(Listed().double().eval(), 0), inputs("unsorted")
    lrp = check(model, given)
    for lengths in ([5, 1, 3], [2]):
        other = {"x": given["x"][: len(lengths)], "lengths": torch.tensor(lengths)}
        with nullcontext() if len(lengths) == 3 else pytest.warns(RetraceWarning, match="axis 0 of 'lengths' at 3"):
            outputs = lrp.attribute(other).outputs
        assert (outputs - model(**other)).abs().max() < 1e-12


def test_the_modules_are_left_as_they_were() -> None:
    before = [kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)]
    model, given = build("lstm"), inputs("unsorted")
    fxlrp.convert(model).attribute(given)
    assert [kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)] == before
    assert "forward" not in vars(model.cell)
    # A sequence packed outside is the original's business.
    outside_packed = rnn.pack_padded_sequence(given["x"], given["lengths"], True, enforce_sorted=False)
    stand_in = twin(model)
    with packed.unrolled_packing(stand_in):
        inside = rnn.pad_packed_sequence(stand_in.cell(outside_packed)[0], True)
    outside = rnn.pad_packed_sequence(model.cell(outside_packed)[0], True)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


class Cells(nn.Module):
    """Single cells stepped by hand.  x: [batch, steps, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(FEATURES, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)
        self.rnn, self.head = nn.RNNCell(HIDDEN, HIDDEN, nonlinearity="relu"), nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        state, second, third = None, None, None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            second = self.gru(state[0], second)
            third = self.rnn(second, third)
        return self.head(third)


def test_single_cells() -> None:
    check(realistic(Cells().double().eval(), 0), {"x": inputs("full")["x"]})
