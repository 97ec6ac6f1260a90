"""What entries of a ledger are called follows from graph and values: other names change no number and no kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.engine.sources import counts
from tests.support.renamed import renamed

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
TYPES = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
PLACES = torch.arange(5).expand(2, 5).contiguous()
LATE = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Text(nn.Module):
    """Words, positions and types, one layer of attention, a head. ``place`` makes the positions from ids."""

    def __init__(self, place: Callable[[Any, Tensor], Tensor], name: str = "weird") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place, self.called = place, name
        self.words, self.types = nn.Embedding(20, 8), nn.Embedding(2, 8)
        self.add_module(name, nn.Embedding(12, 8))
        self.free = nn.Parameter(self.table.weight.detach()[None].clone())
        self.register_buffer("fixed", self.table.weight.detach().clone())
        self.register_buffer("places", torch.arange(12)[None])
        self.register_buffer("zeros", torch.zeros(1, 12, dtype=torch.long))
        self.qkv, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 3)
        nn.init.normal_(self.norm.bias)
        self.double().eval()

    @property
    def table(self) -> nn.Embedding:
        """The table of positions."""
        return getattr(self, self.called)

    def body(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + (q @ k.mT / 8**0.5).softmax(-1) @ v).mean(1))

    def forward(self, ids: Tensor) -> Tensor:
        types = self.types(self.zeros[:, : ids.shape[1]].expand(ids.shape[0], -1))
        return self.body(self.words(ids) + self.place(self, ids) + types)


PLACED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "arange": lambda m, ids: m.table(torch.arange(ids.shape[1])),
    "sliced parameter": lambda m, ids: m.free[:, : ids.shape[1]],
    "sliced table": lambda m, ids: m.table.weight[: ids.shape[1]],
    "sliced buffer": lambda m, ids: m.fixed[: ids.shape[1]],
    "buffer of places": lambda m, ids: m.table(m.places[:, : ids.shape[1]]),
    "counted mask": lambda m, ids: m.table((ids != 19).long().cumsum(1) - 1),
    "index": lambda m, ids: m.fixed[torch.arange(ids.shape[1])],
}


def positions_of(model: nn.Module, given: dict[str, Tensor]) -> fxlrp.Attribution:
    return fxlrp.convert(model, "pa-lrp").attribute(given, target=1, ledger=True)


def test_positions_are_found_however_they_are_made_and_called() -> None:
    """One relevance for seven spellings and five names, that of a model whose positions are read from its values."""
    expected = positions_of(Text(PLACED["arange"]), {"ids": IDS})
    plain = fxlrp.convert(Text(PLACED["arange"]), "pa-lrp").attribute({"ids": IDS}, target=1).features.sum(-1)
    assert (expected.relevance - plain).abs().max() > 1e-3
    assert set(expected.ledger.by_kind()) >= {"position embedding", "embedding", "norm shift", "bias"}
    for place in PLACED:
        found = positions_of(Text(PLACED[place]), {"ids": IDS})
        assert torch.allclose(found.relevance, expected.relevance, rtol=1e-10), place
        assert {*found.ledger.by_kind()} == {*expected.ledger.by_kind()}, place
    for name in ("position_embeddings", "pos_embed", "wpe", "pe", "token_type_embeddings"):
        found = positions_of(Text(PLACED["arange"], name), {"ids": IDS})
        assert torch.equal(found.relevance, expected.relevance), name


class Given(Text):
    """The same with positions that are an input."""

    def forward(self, ids: Tensor, where: Tensor, kinds: Tensor) -> Tensor:
        return self.body(self.words(ids) + self.table(where) + self.types(kinds))


def test_given_positions_are_told_from_types_by_counting() -> None:
    """Under pa-lrp, ids that count are positions, also where their table is attributed; types are not."""
    model = Given(PLACED["arange"])
    found = positions_of(model, {"ids": IDS, "where": PLACES, "kinds": TYPES})
    assert list(found.inputs) == ["ids", "where", "kinds"]
    own = found.features.sum(-1)
    assert torch.allclose(found.relevance, own + found.inputs["where"].abs())

    class Counted(Text):
        def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
            return self.body(self.words(ids) + self.table(torch.arange(ids.shape[1])) + self.types(kinds))

    inside = positions_of(Counted(PLACED["arange"]), {"ids": IDS, "kinds": TYPES})
    assert torch.allclose(found.relevance, inside.relevance, rtol=1e-10)


class Named(Given):
    """Its input embedding is named, so that the other tables are constants."""

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def test_look_ups_of_inputs_that_are_not_attributed_bear_their_name() -> None:
    result = positions_of(Named(PLACED["arange"], "token_type"), {"ids": IDS, "where": PLACES, "kinds": TYPES})
    kinds = {entry.source: entry.kind for entry in result.ledger.entries}
    assert kinds["kinds: types.weight"] == "embedding"
    assert kinds["token_type.weight"] == "position embedding"
    of_given = positions_of(Given(PLACED["arange"]), {"ids": IDS, "where": PLACES, "kinds": TYPES})
    assert torch.allclose(result.relevance, of_given.relevance, rtol=1e-10)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([[0, 1, 2, 3]], True),
        ([[2, 3, 4, 5], [2, 3, 1, 1]], True),
        ([[0, 1, 2, 3], [0, 0, 0, 1]], True),
        ([[0, 0, 1, 1]], False),
        ([[0, 0, 0, 1, 2, 3]], False),
        ([[0, 1, 2, 0]], False),
        ([[3, 1, 4, 1]], False),
        ([[0, 1, 2], [2, 1, 0]], False),
        ([[0]], False),
    ],
)
def test_ids_count_or_do_not(ids: list[list[int]], expected: bool) -> None:
    assert counts(torch.tensor(ids)) is expected


class Parts(nn.Module):
    """Layers for a function of tokens and one more input."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.linear, self.head, self.hours = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(1, 8)
        self.conv, self.batch = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.batch.running_mean.normal_()
        self.table, self.token = nn.Embedding(20, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.shift, self.slope = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(5))
        self.heads, self.split = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(8, 2, 4))
        self.pairs = nn.Parameter(torch.randn(5, 5))
        self.register_buffer("causal", torch.full((5, 5), -torch.inf).triu(1))
        self.unused = nn.Embedding(2, 8)
        self.double().eval()

    def get_input_embeddings(self) -> nn.Module:
        """Another table than that of ``other``, whose rows are therefore constants."""
        return self.unused

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.function(self, x, other)

    def mixed(self, x: Tensor, added: Tensor) -> Tensor:
        q = self.linear(x)
        return self.head(((q @ q.mT + added).softmax(-1) @ q).mean(1))


KINDS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], Tensor, str]] = {
    "columns": (lambda m, x, o: m.head((x + m.table(o)).mean(1)), TYPES, "embedding"),
    "time steps": (lambda m, x, o: m.head((x + m.hours(o[..., None].double())).mean(1)), IDS, "other input"),
    "language": (lambda m, x, o: m.head((x + m.table(o)[:, None]).mean(1)), torch.tensor([2, 7]), "embedding"),
    "mask of scores": (lambda m, x, o: m.mixed(x, (1.0 - o.double())[:, None] * -1e9), LATE, "mask"),
    "mask of conditions": (
        lambda m, x, o: m.mixed(x, torch.zeros(2, 1, 5).double().masked_fill(o[:, None] == 0, -1e9)),
        LATE,
        "mask",
    ),
    "causal buffer": (lambda m, x, o: m.mixed(x, m.causal) + o[:, :1], LATE, "mask"),
    "learnt bias of pairs": (lambda m, x, o: m.mixed(x, m.pairs) + o[:, :1], LATE, "position bias"),
    "counted bias": (
        lambda m, x, o: m.mixed(x, -(torch.arange(5)[:, None] - torch.arange(5)).abs().double()) + o[:, :1],
        LATE,
        "position bias",
    ),
    "class token": (
        lambda m, x, o: m.head(torch.cat([m.token.expand(2, -1, -1), x], 1)[:, 0] * o[:, :1] + x.mean(1)),
        LATE,
        "class token",
    ),
    "coordinates": (
        lambda m, x, o: m.head(torch.cat([x[..., 1:], torch.arange(5.0)[None, :, None].expand(2, 5, 1)], -1).mean(1)),
        LATE,
        "position embedding",
    ),
    "shift of every token": (lambda m, x, o: m.head((x + m.shift).mean(1)) * o[:, :1], LATE, "bias"),
    "number for each token": (
        lambda m, x, o: m.head((x + m.slope[:, None]).mean(1)) * o[:, :1],
        LATE,
        "position embedding",
    ),
    "shift of every head": (
        lambda m, x, o: m.head((m.linear(x).unflatten(-1, (2, 4)) + m.heads).flatten(-2).mean(1)) * o[:, :1],
        LATE,
        "bias",
    ),
    "shift of every head, by einsum": (
        lambda m, x, o: m.head((torch.einsum("bti,ihd->bthd", x, m.split) + m.heads).flatten(-2).mean(1)) * o[:, :1],
        LATE,
        "bias",
    ),
    "number for each channel": (
        lambda m, x, o: m.head((m.conv(x.mT) + m.shift[:, None]).mean(2)) * o[:, :1],
        LATE,
        "bias",
    ),
    "batch norm": (lambda m, x, o: m.head(m.batch(m.conv(x.mT)).mean(2)) * o[:, :1], LATE, "norm shift"),
}


def kinds_of(model: nn.Module, given: dict[str, Any]) -> dict[str, Tensor]:
    found = fxlrp.convert(model, "attnlrp").attribute(given, target=1, ledger=True)
    return found.ledger.by_kind()


@pytest.mark.parametrize("name", KINDS)
def test_a_constant_is_called_what_it_is(name: str) -> None:
    function, other, kind = KINDS[name]
    found = kinds_of(Parts(function), {"x": X, "other": other})
    told = {"mask", "embedding", "other input", "position bias", "position embedding", "class token", "norm shift"}
    assert kind in found
    assert not (told & {*found}) - {kind}


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    **{f"text, {name}": (lambda p=place: Text(p), {"ids": IDS}) for name, place in PLACED.items()},
    "given positions": (lambda: Given(PLACED["arange"]), {"ids": IDS, "where": PLACES, "kinds": TYPES}),
    **{name: (lambda f=f: Parts(f), {"x": X, "other": other}) for name, (f, other, _) in KINDS.items()},
}


@pytest.mark.parametrize("name", MODELS)
def test_other_names_change_nothing(name: str) -> None:
    make, given = MODELS[name]
    model, ruleset = make(), "pa-lrp" if "ids" in given else "attnlrp"
    expected = fxlrp.convert(model, ruleset).attribute(given, target=1, ledger=True)
    other = renamed(model, seed=len(name))
    found = fxlrp.convert(other.model, ruleset).attribute(other.inputs(given), target=1, ledger=True)
    assert torch.equal(found.relevance, expected.relevance)
    assert list(found.inputs) == [other.names[old] for old in expected.inputs]
    for old, relevance in expected.inputs.items():
        assert torch.equal(found.inputs[other.names[old]], relevance)
    ours, theirs = found.ledger.by_kind(), expected.ledger.by_kind()
    assert {*ours} == {*theirs}
    assert all(torch.allclose(ours[kind], theirs[kind], rtol=1e-12, atol=1e-15) for kind in ours)
