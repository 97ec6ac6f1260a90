"""Patterns are found as they are written: which torch code they may hold, which axes count, what is said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import InputError, PatternError
from fxlrp.patterns import PATTERNS, Match, any_axis, part, pattern
from fxlrp.planning.plan import Plan

pytestmark = pytest.mark.usefixtures("tables_restored")
Code = Callable[..., Tensor]


class Three(nn.Module):
    """A function of three linear maps of the input, summed over tokens."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.maps: nn.ModuleList = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(*(each(x) for each in self.maps)).sum(1)


def tokens() -> Tensor:
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def converted(code: Code, *lines: dict[str, str], extends: str = "gradient") -> fxlrp.ConvertedModel:
    rules = fxlrp.ruleset({"name": "own", "extends": extends, "rules": list(lines)})
    return fxlrp.convert(Three(code).double().eval(), rules, example_inputs=tokens())


def planned(code: Code) -> Plan:
    return converted(code, {"match": "own", "rule": "gradient"}).plan


def count(plan: Plan, name: str = "own") -> int:
    return sum(match.pattern.name == name for match in plan.structure.matches)


def looked_for(code: Code, **examples: tuple[int, ...]) -> None:
    names = code.__code__.co_varnames[: code.__code__.co_argcount]
    shapes: dict[str, Any] = {name: examples.get(name, (2, 4, 6)) for name in names}
    pattern("own", **shapes)(code)


# --- the same passes ----------------------------------------------------------------------------------------


def squared_relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return part(torch.matmul(F.relu(torch.matmul(q, k.mT)).pow(2), v), "output")


def _halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.tanh(a) * torch.sigmoid(b)


def _in_place(x: Tensor, y: Tensor) -> Tensor:
    h = x * 2
    h.mul_(y).relu_()
    return torch.tanh(h)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(F.scaled_dot_product_attention(q, k, v))


def _gelu(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * a * (1 + torch.erf(a / math.sqrt(2))) * b


def _silu(a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(a) * b


def _scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = F.relu(q @ k.mT / math.sqrt(q.shape[-1]))
    return (weights * weights) @ v


def _norm(x: Tensor) -> Tensor:
    return torch.tanh(F.layer_norm(x, x.shape[-1:]))


def _deviation(x: Tensor) -> Tensor:
    return torch.tanh(x / x.var(-1, keepdim=True))


@pytest.mark.parametrize(
    ("looked", "model"),
    [
        (squared_relu_attention, lambda q, k, v: F.relu(q @ k.transpose(-1, -2)).square() @ v),
        (squared_relu_attention, lambda q, k, v: torch.matmul(F.relu(torch.matmul(q, k.mT)) ** 2, v)),
        (lambda q, k, v: torch.square(F.relu(q @ k.mT)) @ v, lambda q, k, v: F.relu(q @ k.mT).pow(2) @ v),
        (_scaled, _scaled),
        (_gelu, lambda q, k, v: _gelu(q, k)),
        (_silu, lambda q, k, v: _silu(q, k)),
        (_attention, _attention),
        (_norm, lambda q, k, v: _norm(q)),
        (_deviation, lambda q, k, v: _deviation(q)),
        (lambda x, y: torch.tanh(x / 8) * y, lambda q, k, v: torch.tanh(q * 0.125) * k),
        (_halves, lambda q, k, v: _halves(q)),
        (lambda x: torch.tanh(F.glu(x)), lambda q, k, v: torch.tanh(F.glu(q))),
        (_in_place, lambda q, k, v: _in_place(q, k)),
        (lambda x, y: torch.tanh(x.mul_(y)), lambda q, k, v: torch.tanh(q * k)),
    ],
)
def test_torch_code_is_found_in_a_model_that_has_it(looked: Code, model: Code) -> None:
    looked_for(looked)
    assert count(planned(model)) == 1


def test_matrix_products_with_a_bias_are_found() -> None:
    looked_for(lambda b, x, w: torch.tanh(torch.addmm(b, x, w)), b=(3, 3), x=(3, 4), w=(4, 3))
    assert count(planned(lambda q, k, v: torch.tanh(torch.addmm(q[0, :, :5], k[0], v[0].mT))[None])) == 1


def test_an_activation_is_not_taken_for_another() -> None:
    looked_for(_silu)
    plan = planned(lambda q, k, v: q * torch.sigmoid(1.702 * q) * k)
    assert count(plan) == 0
    assert "expected silu, found" in plan.told_misses[0]


def test_a_part_inside_of_an_activation_is_refused() -> None:
    looked_for(lambda q, k, v: torch.square(part(F.relu(q @ k.mT), "gate")) @ v)
    with pytest.raises(PatternError, match=r"The part 'gate' of the pattern 'own' .* lies inside of an activation"):
        planned(squared_relu_attention)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (lambda x: torch.tensor(2.0) * x, "makes a tensor of its own"),
        (lambda x: x @ x, "cannot be traced: RuntimeError"),
    ],
)
def test_code_that_cannot_be_traced_is_not_registered_for_long(code: Code, said: str) -> None:
    with pytest.raises(PatternError, match=said):
        looked_for(code)
    assert "own" not in PATTERNS


def test_examples_are_the_parameters_in_their_order() -> None:
    with pytest.raises(PatternError, match="has the parameters x, y but examples of y, x"):
        pattern("own", y=(2, 3), x=(2, 3))(lambda x, y: x * y)


# --- axes ---------------------------------------------------------------------------------------------------


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, -1) @ v


def _by_rows(x: Tensor) -> Tensor:
    return torch.tanh(x - x.mean(-1, keepdim=True))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.tanh(torch.einsum("bqd,bkd->bqk", q, k))


def _less_mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT)[0]
    return torch.tanh(scores - scores.mean(-1))[None]


def _less_mean_kept(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    return torch.tanh(scores - scores.mean(-1).unsqueeze(-1))


@pytest.mark.parametrize(
    ("looked", "model", "said"),
    [
        (_eager, lambda q, k, v: torch.softmax(q @ k.mT, -2) @ v, "aten.softmax along axis -1 .* found axis -2"),
        (_eager, lambda q, k, v: torch.softmax(q @ k.mT, -1).mT @ v, "aten.softmax along axis -1 .* found axis -2"),
        (_eager, lambda q, k, v: torch.softmax(k @ q.mT, -2).mT @ v, ""),
        (_eager, lambda q, k, v: (torch.softmax(q[:, None] @ k[:, None].mT, 3) @ v[:, None])[:, 0], ""),
        (_scores, lambda q, k, v: torch.tanh(torch.einsum("bqd,bkd->bkq", q, k)), ""),
        (_scores, lambda q, k, v: torch.tanh(torch.einsum("xkd,xqd->xqk", q, k)), ""),
        (
            _scores,
            lambda q, k, v: torch.tanh(torch.einsum("bqd,bqd->bq", q, k))[..., None],
            "expected bqd,bkd->bqk as the sum of products, found bqd,bqd->bq",
        ),
        (_by_rows, _less_mean, r"aten.mean .*in place \(keepdim\)"),
        (_by_rows, _less_mean_kept, ""),
        (_by_rows, lambda q, k, v: torch.tanh(q - q.mean(1, keepdim=True)), "along axis -1 .* found axis -2"),
        (_by_rows, lambda q, k, v: torch.tanh(q - q.mean((1, 2), keepdim=True)), "found axis -2 and -1"),
        (
            lambda x, y: torch.tanh(torch.cat([x, y], -1)),
            lambda q, k, v: torch.tanh(torch.cat([q, k], 1)),
            "aten.cat along axis -1 .* found axis -2",
        ),
        (lambda x, y: torch.tanh(torch.cat([x, y], -1)), lambda q, k, v: torch.tanh(torch.cat([q, k], 2)), ""),
        (
            lambda x: torch.tanh(torch.cumsum(x, -1)),
            lambda q, k, v: torch.tanh(torch.cumsum(q, 1)),
            "aten.cumsum along axis -1 .* found axis -2",
        ),
        (lambda x: torch.tanh(any_axis(torch.cumsum(x, -1))), lambda q, k, v: torch.tanh(torch.cumsum(q, 1)), ""),
    ],
)
def test_axes_are_compared_from_the_end_and_through_moves(looked: Code, model: Code, said: str) -> None:
    looked_for(looked)
    plan = planned(model)
    assert count(plan) == (0 if said else 1)
    if said:
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(plan.told_misses[0])


def test_axes_of_one_name_are_the_same() -> None:
    def looked(x: Tensor) -> Tensor:
        mean, size = (any_axis(y.mean(-1, keepdim=True), "features") for y in (x, x.abs()))
        return (x - mean) / size

    looked_for(looked)
    assert count(planned(lambda q, k, v: (q - q.mean(1, keepdim=True)) / q.abs().mean(1, keepdim=True))) == 1
    plan = planned(lambda q, k, v: (q - q.mean(1, keepdim=True)) / q.abs().mean(2, keepdim=True))
    assert count(plan) == 0
    assert "expected aten.mean" in plan.told_misses[0]


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm((4, 6, 6))])
def test_norms_over_other_axes_are_norms(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert count(fxlrp.convert(model, "conservative", example_inputs=x).plan, "norm") >= 1


@pytest.mark.parametrize("weights", [lambda s: torch.softmax(s, -2), lambda s: torch.softmax(s, -1).mT])
def test_a_softmax_over_queries_is_no_attention(weights: Code) -> None:
    lrp = fxlrp.convert(Three(lambda q, k, v: weights(q @ k.mT) @ v).double().eval(), "rollout")
    with pytest.raises(
        InputError, match=r"no attention .*'attention' matched 1 of 3 .* along axis -1 .* found axis -2"
    ):
        lrp.attribute(tokens(), target=0)


def test_weights_in_another_order_are_no_matrix_for_rollout() -> None:
    model = Three(lambda q, k, v: torch.softmax(k @ q.mT, -2).mT @ v).double().eval()
    with pytest.raises(InputError, match=r"another order than \[..., queries, keys\]"):
        fxlrp.convert(model, "rollout").attribute(tokens(), target=0)
    plan = fxlrp.convert(model, "attnlrp", example_inputs=tokens()).plan
    assert count(plan, "attention") == 1


# --- checks and near misses ---------------------------------------------------------------------------------


def test_a_check_that_does_not_hold_gives_its_reason() -> None:
    seen: list[tuple[int, ...]] = []

    def narrow(match: Match) -> str | None:
        seen.append(match.shape("x"))
        return None if match.shape("x")[-1] <= int(match.inputs["width"]) else "its input is too wide"

    pattern("own", check=narrow, x=(2, 3), width=())(lambda x, width: torch.tanh(x) * width)
    assert count(planned(lambda q, k, v: torch.tanh(q) * 8)) == 1
    plan = planned(lambda q, k, v: torch.tanh(q) * 7)
    assert count(plan) == 0
    assert plan.told_misses[0].startswith("'own' (<lambda>) matched 2 of 2 operators in the top level")
    assert plan.told_misses[0].endswith(": its input is too wide")
    assert {shape[-1] for shape in seen} == {8}


@pytest.mark.parametrize(("verdict", "matches"), [(True, 1), (None, 1), (False, 0), ("no", 0)])
def test_a_check_holds_by_none_or_true(verdict: str | bool | None, matches: int) -> None:
    pattern("own", check=lambda match: verdict, x=(2, 3))(lambda x: torch.tanh(x))
    assert count(planned(lambda q, k, v: torch.tanh(q))) == matches


def test_the_best_attempt_is_told_however_little_of_it_was_there() -> None:
    def looked(x: Tensor) -> Tensor:
        return torch.sinh(torch.tanh(torch.cosh(x)))

    looked_for(looked)
    plan = planned(lambda q, k, v: torch.sinh(torch.tanh(q)) + torch.sinh(k))
    assert "'own' (looked) matched 2 of 3 operators in the top level" in plan.told_misses[0]
    assert "expected aten.cosh, found aten.linear" in plan.told_misses[0]
    assert "test_language.py" in plan.told_misses[0]
    assert "near miss: 'own' (looked) matched 2 of 3" in str(plan)
    assert str(planned(lambda q, k, v: torch.sinh(q))).endswith("found aten.linear" + _line_of(plan))
    assert "no operator of the graph is its root (aten.sinh)" in str(planned(lambda q, k, v: torch.tanh(q)))


def _line_of(plan: Plan) -> str:
    return plan.told_misses[0].partition("found aten.linear")[2]


def test_all_patterns_that_were_not_found_are_told_the_most_complete_first() -> None:
    plan = planned_without_own(lambda q, k, v: q @ k.mT @ v)
    shares = [miss.share for miss in plan.structure.misses]
    assert shares == sorted(shares, reverse=True)
    assert {miss.pattern.name for miss in plan.structure.misses} == {*PATTERNS} - {"activation"}
    assert plan.told_misses == ()  # rulesets name many that a model need not have


def planned_without_own(code: Code) -> Plan:
    return fxlrp.convert(Three(code).double().eval(), "conservative", example_inputs=tokens()).plan
