"""Any floating type: relevance and values are those of float64, to the rounding of the type.

The bound. Each operation on the way rounds by at most eps relative to what it computes; errors of n operations in a
row are independent, so they add up to about eps sqrt(n). The tiny models of the zoo have 2 layers of some 30 operations
on the longest path, forward and again backward: n is about 120, and 16 eps is 1.5 eps sqrt(n). Measured are 7 eps.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.engine.targets import logits_of
from tests.support.zoo import ZOO, converted

SLOW = ("bert", "gpt2", "t5", "convnext", "mixtral", "mamba")
MODELS = ("llama", "vit", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUND = 16.0  # in eps of the type
RULESETS = ("attnlrp", "conservative")


@cache
def exact(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, fxlrp.Attribution]]:
    """The float64 model, its inputs and its attributions."""
    first, given = converted(name), ZOO[name].inputs()
    return first.model, given, {rules: first.with_ruleset(rules).attribute(given) for rules in RULESETS}


def in_type(values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def largest(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def check_ledger(result: fxlrp.Attribution, bound: float) -> None:
    """The gap is small beside the sum of the entries' sizes, and sums are in float64."""
    assert result.ledger is not None
    size = sum((entry.amount.abs() for entry in result.ledger.entries), torch.zeros(()))
    assert result.ledger.gap.dtype is torch.float64
    assert (result.ledger.gap.abs() <= bound * size).all()  # NaN fails, too


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_that_of_float64(name: str, dtype: str) -> None:
    model, given, references = exact(name)
    kind = DTYPES[dtype]
    eps = torch.finfo(kind).eps
    model, given = copy.deepcopy(model).to(kind), in_type(given, kind)
    with torch.no_grad():
        expected = logits_of(model(**given))
    first = fxlrp.convert(model, RULESETS[0])
    for rules, reference in references.items():
        result = first.with_ruleset(rules).attribute(given, target=reference.target, ledger=True)
        logits = logits_of(result.outputs)
        assert logits.dtype is expected.dtype
        assert largest(logits, expected) <= eps
        assert result.relevance.isfinite().all()
        assert largest(result.relevance, reference.relevance) <= BOUND * eps, rules
        check_ledger(result, BOUND * eps)


class Normed(nn.Module):
    """A normalisation before a linear head.  x: [batch, channels, ...]."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        y = self.norm(x)
        return self.head(y.flatten(2)[..., 0] if y.ndim > 2 else y)


class Spelled(nn.Module):
    """Standard scores as a notebook computes them."""

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape."""
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)


NORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm(64), (2, 64)),
    "rms norm": (lambda: nn.RMSNorm(64), (2, 64)),
    "spelled out": (Spelled, (2, 64)),
    "group norm": (lambda: nn.GroupNorm(2, 8), (2, 8, 16)),
    "instance norm": (lambda: nn.InstanceNorm1d(8, affine=True), (2, 8, 64)),
    "batch norm": (lambda: nn.BatchNorm1d(8), (2, 8, 16)),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NORMS)
def test_an_outlier_whose_square_overflows(name: str, dtype: str) -> None:
    """Large language models have channels of 1000 and more; float16 ends at 65504."""
    make, shape = NORMS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Normed(make(), shape[1]).eval(), torch.randn(*shape)
    x[:, 3] *= 1500
    kind = DTYPES[dtype]
    eps = torch.finfo(kind).eps
    x = x.to(kind).float()
    reference = fxlrp.convert(copy.deepcopy(model).double(), "conservative").attribute(x.double(), target=1)
    model = model.to(kind)
    result = fxlrp.convert(model, "conservative").attribute(x.to(kind), target=1, ledger=True)
    assert largest(result.outputs, model(x.to(kind))) <= eps
    assert result.ledger is not None
    size = reference.outputs.abs().max()
    assert (result.ledger.explained - reference.explained).abs().max() <= BOUND * eps * size
    check_ledger(result, BOUND * eps)
    assert result.relevance.isfinite().all()


def test_an_infinite_mask_in_float16() -> None:
    """-inf, and the lowest number plus the lowest number, which is -inf."""
    case = ZOO["attention"]
    model, given = case.build().half(), in_type(case.inputs(), torch.float16)
    for rules in ("attnlrp", "conservative", "epsilon"):
        result = fxlrp.convert(model, rules).attribute(given, target=1, ledger=True)
        assert result.relevance.isfinite().all()
        check_ledger(result, BOUND * torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.ReLU])
def test_an_activation_near_zero_in_float16(activation: type[nn.Module]) -> None:
    """1 / x overflows below 1.5e-5: the slope must come from the quotient, in which it does not."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), activation(), nn.Linear(1, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model[2].weight.fill_(1.0)
    x = torch.tensor([[0.5, 0.5 - 2**-11]])  # the sum is 4.9e-4, and 7.6e-6 after
    for scale in (1.0, 2.0**-6):
        given = x * scale
        found = fxlrp.convert(copy.deepcopy(model).half(), "attnlrp").attribute(given.half(), target=0).relevance
        expected = fxlrp.convert(copy.deepcopy(model).double(), "attnlrp").attribute(given.double(), target=0).relevance
        assert largest(found, expected) < 0.02  # the value itself has few bits left here


def test_small_amounts_of_relevance_do_not_vanish_from_the_ledger() -> None:
    """4096 products of 1e-4 and 1e-4: each is below float16's smallest number."""
    model = nn.Sequential(nn.Linear(4096, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1e-4)
    x = torch.full((1, 4096), 1e-4)
    result = fxlrp.convert(model.half(), "epsilon").attribute(x.half(), target=0, ledger=True)
    check_ledger(result, BOUND * torch.finfo(torch.float16).eps)
    assert result.relevance.sum() > 3e-5
