"""Rules for recurrent networks: a pre-activation is one layer, gates are constants, nothing is lost.

With bias_factor 1 the relevance of inputs and initial states is the explained score, for every form of module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import fxlrp
from fxlrp.rules import RULES
from fxlrp.testing import check_rule
from fxlrp.testing.weights import realistic

FEATURES, HIDDEN, LABELS, STEPS, BATCH = 3, 4, 3, 3, 3
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Encoder(nn.Module):
    """A recurrent module, pooled by its final state, a mean or attention; x: [batch, steps, 3] or ids."""

    def __init__(self, kind: str, pool: str, ids: bool, learned: bool, given: bool, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, FEATURES) if ids else None
        self.cell: Any = getattr(nn, kind)(FEATURES, HIDDEN, batch_first=True, **options)
        self.pool, self.given = pool, given
        directions = 2 if self.cell.bidirectional else 1
        width = directions * (getattr(self.cell, "proj_size", 0) or HIDDEN)
        states = directions * self.cell.num_layers
        self.first = nn.ParameterList([torch.randn(states, 1, HIDDEN) for _ in range(2)]) if learned else None
        self.keys, self.query = nn.Linear(width, 5), nn.Linear(width, 5)
        self.score, self.form = nn.Linear(5, 1), nn.Linear(width, width)
        self.head = nn.Linear(2 * width, LABELS)

    def states(self, batch: int, h: Tensor | None, c: Tensor | None) -> Any:
        if self.first is not None:
            h, c = (state.expand(-1, batch, -1).contiguous() for state in self.first)
        elif h is not None and c is not None:
            h, c = h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()
        return None if h is None else (h, c) if isinstance(self.cell, nn.LSTM) else h

    def weights(self, y: Tensor, last: Tensor, here: Tensor) -> Tensor:
        if self.pool.startswith("additive"):
            scores = self.score(torch.tanh(self.keys(y) + self.query(last)[:, None])).squeeze(-1)
        else:
            scores = torch.bmm(self.form(y), last.unsqueeze(-1)).squeeze(-1)
        return scores.masked_fill(~here, float("-inf")).softmax(-1)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        """Logits, [batch, 3]."""
        x = x if self.embedding is None else self.embedding(x)
        state = self.states(x.shape[0], h, c)
        if lengths is None:
            y, _ = self.cell(x, state)
            here = torch.ones(y.shape[:2], dtype=torch.bool)
        else:
            packed, _ = self.cell(rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False), state)
            y, _ = rnn.pad_packed_sequence(packed, True)
            here = torch.arange(y.shape[1]) < lengths[:, None]
        last = y[:, 0]
        if self.pool == "mean":
            pooled = (y * here.unsqueeze(-1)).sum(1) / here.sum(1, keepdim=True)
        elif self.pool.endswith("product"):
            pooled = torch.bmm(self.weights(y, last, here).unsqueeze(1), y).squeeze(1)
        else:
            pooled = (self.weights(y, last, here).unsqueeze(-1) * y).sum(1)
        return self.head(torch.cat([pooled, last], -1))


def build(
    kind: str = "LSTM",
    pool: str = "mean",
    ids: bool = False,
    learned: bool = False,
    given: bool = False,
    **options: Any,
) -> Encoder:
    return realistic(Encoder(kind, pool, ids, learned, given, **options).double().eval(), 0)


def feed(model: Encoder, packed: bool = False) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, STEPS, FEATURES, generator=rng, dtype=torch.float64)
    found = {"x": x if model.embedding is None else torch.randint(0, 11, (BATCH, STEPS), generator=rng)}
    if packed:
        found["lengths"] = torch.tensor([2, 3, 1])
    if model.given:
        found |= {name: torch.randn(BATCH, 1, HIDDEN, generator=rng, dtype=torch.float64) for name in "hc"}
    return found


def rules(name: str = "arras2017", bias_factor: float = 1.0) -> fxlrp.Ruleset:
    return fxlrp.ruleset(name).override(bias_factor=bias_factor)


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "additive attention": {"pool": "additive sum", "bidirectional": True},
    "multiplicative attention": {"pool": "multiplicative product", "bidirectional": True},
    "packed, attention": {"packed": True, "pool": "additive sum", "bidirectional": True},
    "packed, two layers": {"packed": True, "num_layers": 2, "pool": "multiplicative product"},
    "packed, mean": {"packed": True, "kind": "GRU", "bidirectional": True},
    # Regression: a mask, times states that gates had made, was taken for an expert and the states for its weight.
    "packed, mean of two layers": {"packed": True, "num_layers": 2, "bidirectional": True},
    "ids": {"ids": True},
    "projected, no bias": {"proj_size": 2, "bias": False},
    "gated unit": {"kind": "GRU"},
    "elman, relu": {"kind": "RNN", "nonlinearity": "relu"},
    "learnt states": {"learned": True},
    "given states": {"given": True},
}


def convert(form: str) -> tuple[fxlrp.ConvertedModel, dict[str, Tensor]]:
    options = dict(FORMS[form])
    packed = options.pop("packed", False)
    model = build(**options)
    given = feed(model, packed)
    return fxlrp.convert(model, "arras2017", example_inputs=given), given


converted = cache(convert)


def conserves(
    form: str, name: str = "arras2017", tolerance: float = 1e-12, of: Callable[[str], Any] = converted
) -> None:
    """Inputs and initial states together receive the score, to ``tolerance`` of it."""
    lrp, given = of(form)
    model: Any = lrp.model
    result = lrp.with_ruleset(rules(name)).attribute(given, target=1, ledger=True)
    assert (result.outputs - model(**given)).abs().max() < 1e-14
    assert result.ledger is not None
    kinds = result.ledger.by_kind()
    size = float(result.explained.abs().max())
    assert result.ledger.gap.abs().max() < tolerance * size
    own = kinds["input"] + kinds.get("initial state", 0.0)
    assert (own - result.explained).abs().max() < tolerance * size
    assert (kinds.get("bias", torch.zeros(())).abs() < tolerance * size).all()
    assert ("initial state" in kinds) != model.given
    if "initial state" in kinds:
        assert kinds["initial state"].abs().max() > 1e-4 * size  # there is something to miss
    relevance = sum(part.sum(tuple(range(1, part.ndim))) for part in result.inputs.values())
    assert (relevance - kinds["input"]).abs().max() < tolerance * size


@pytest.mark.parametrize("form", FORMS)
def test_t08_nothing_is_lost(form: str) -> None:
    conserves(form)


@pytest.mark.parametrize("form", ["two layers, both directions", "gated unit"])
@pytest.mark.parametrize("name", ["arras2019-abs", "arras2019-half", "arras2019-prop"])
def test_nothing_is_lost_where_gates_take_their_share(name: str, form: str) -> None:
    conserves(form, name, 1e-6 if name == "arras2019-prop" else 1e-12)  # a / (a + b) is large where a + b is small


def test_the_product_rules_differ() -> None:
    first, given = converted("plain")
    names = ("arras2017", "arras2019-prop", "arras2019-abs", "arras2019-half")
    found = [first.with_ruleset(rules(name)).attribute(given).relevance for name in names]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize("parameters", [{}, {"bias_factor": 1.0}, {"bias_factor": 0.4, "epsilon": 0.3}])
def test_the_rule_keeps_its_promises(parameters: dict[str, Any]) -> None:
    report = check_rule(RULES["spread"], parameters=parameters)
    assert report.passed, str(report)


@pytest.mark.parametrize("form", ["two layers, both directions", "multiplicative attention", "gated unit"])
def test_t08_in_gradients_it_is_the_epsilon_rule(form: str) -> None:
    first, given = converted(form)
    eps = {"rule": "epsilon", "epsilon": 1e-3}
    classes = dict.fromkeys(("affine", "mixing", "sum"), eps)
    gates = {f"cell.{name}": "constant" for name in ("forget", "input", "output", "update", "reset")}
    changed = (
        fxlrp.ruleset("arras2017").override(**classes, activation="secant", rectifier="gradient").override(**gates)
    )
    expected = first.attribute(given, target=1).relevance
    gradients = first.with_ruleset(changed.override(message="gradient"))
    found = gradients.attribute(given, target=1, ledger=True)
    assert gradients.message == "gradient"
    assert (found.relevance - expected).abs().max() < 1e-13
    assert found.ledger is not None
    assert found.ledger.gap.abs().max() < 1e-13
    # A sum that begins with a gradient and ends in relevance, and one of relevance throughout
    for other in (fxlrp.ruleset("arras2017").override(message="gradient"), changed):
        assert (first.with_ruleset(other).attribute(given, target=1).relevance - expected).abs().max() < 1e-13


def test_values_are_the_same_bit_for_bit() -> None:
    model = build(num_layers=2, bidirectional=True, pool="additive sum")
    first = fxlrp.convert(model, "conservative")
    outputs = [
        first.with_ruleset(r).attribute(feed(model)).outputs for r in ("conservative", rules(), rules("arras2019-abs"))
    ]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("packed", [False, True])
def test_samples_do_not_mix(packed: bool) -> None:
    model = build(bidirectional=True, pool="additive sum")
    given = feed(model, packed)
    lrp = fxlrp.convert(model, rules())
    together = lrp.attribute(given, target=1).relevance
    if packed:
        assert (together[torch.arange(STEPS) >= given["lengths"][:, None]] == 0).all()
    for sample in range(BATCH):
        length = int(given["lengths"][sample]) if packed else STEPS
        alone = lrp.attribute({"x": given["x"][sample, None, :length]}, target=1).relevance
        assert (alone[0] - together[sample, :length]).abs().max() < 1e-13 * together.abs().max()


class Residual(nn.Module):
    """A sum whose terms are modules' outputs.  x: [batch, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 2]."""
        return self.head(torch.tanh(x + self.up(torch.tanh(self.down(x)))))


def test_what_lies_inside_a_sum_can_be_watched() -> None:
    model = realistic(Residual().double().eval(), 0)
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lrp = fxlrp.convert(model, "arras2017")
    result = lrp.attribute(x, target=0, at=["up"])
    inner = model.up(torch.tanh(model.down(x)))
    z = x + inner
    y = torch.tanh(z)
    weight, logit = model.head.weight[0], model.head(y)[:, :1]
    arrived = y * weight / (logit + 1e-3 * logit.sign()) * logit
    assert (result.at["up"] - inner * arrived / (z + 1e-3 * z.sign())).abs().max() < 1e-14
    assert len(lrp.plan.sums.roots) == 1
    assert {n.name for n in lrp.plan.sums.inner} == {"linear_1"}


def test_a_gate_that_takes_relevance_is_noticed() -> None:
    lrp, given = converted("plain")
    lrp = lrp.with_ruleset(rules())
    alive = rules().override(**{"cell.input": "pass_through"})
    a, b = (each.attribute(given).relevance for each in (lrp, lrp.with_ruleset(alive)))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()
