"""Rounding carries relevance straight through: a layer that rounds is explained as the one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fxlrp
from tests.support.calls import Calls

RULESETS = ("epsilon", "attnlrp", "conservative", "cp-lrp")
STEP = 0.01  # what inputs of about 1 are rounded to
SAME = 1e-7  # of the relevance: the epsilon rule keeps 1e-9 / |y| of it


class StraightThrough(torch.autograd.Function):
    """Rounds, with the gradient of what does not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The nearest whole numbers."""
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient as it is."""
        return grads[0]


def _largest(z: Tensor) -> Tensor:
    return z.abs().amax(-1, keepdim=True) / 127


def _by_largest(z: Tensor, w: Tensor) -> Tensor:
    c = _largest(z)
    return (z / c).round() @ w.T * c


def _by_maximum(z: Tensor, w: Tensor) -> Tensor:
    c = z.abs().max(-1, keepdim=True).values.clamp(min=1e-8) / 127
    return ((z / c).round().clamp(-128, 127) * c) @ w.T


def _by_reciprocal(z: Tensor, w: Tensor) -> Tensor:
    largest = z.abs().amax(-1, keepdim=True)
    return (z * (127 / largest)).round() @ w.T * (largest / 127)


def _by_power_of_two(z: Tensor, w: Tensor) -> Tensor:
    c = 2 ** _largest(z).log2().ceil()
    return ((z / c).round() * c) @ w.T


def _in_groups(z: Tensor, w: Tensor) -> Tensor:
    groups = z.unflatten(-1, (2, 3))
    c = _largest(groups)
    return ((groups / c).round() * c).flatten(-2) @ w.T


def _with_zero_point(z: Tensor, w: Tensor) -> Tensor:
    low, high = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
    c = (high - low) / 255
    zero = (-low / c).round()
    return ((((z / c).round() + zero).clamp(0, 255) - zero) * c) @ w.T


def _as_bytes(z: Tensor, w: Tensor) -> Tensor:
    low, high = z.aminmax(dim=-1, keepdim=True)
    c = (high - low) / 255
    zero = (-low / c).round().to(torch.int32)
    whole = ((z / c).round().to(torch.int32) + zero).clamp(0, 255).to(torch.uint8)
    return ((whole.to(torch.int32) - zero) * c) @ w.T


def _as_int8(z: Tensor, w: Tensor) -> Tensor:
    c = _largest(z)
    return (z / c).round().to(torch.int8).to(z.dtype) @ w.T * c


def _promoted(z: Tensor, w: Tensor) -> Tensor:
    c = _largest(z)
    return ((z / c).int() * c) @ w.T  # the product makes the integers float


def _of_integers(z: Tensor, w: Tensor) -> Tensor:
    c, s = _largest(z), w.abs().amax(1) / 127
    whole = torch._int_mm((z / c).round().to(torch.int8), (w / s[:, None]).round().to(torch.int8).T.contiguous())
    return whole * c * s


#: Layers z W^T that round on the way: (how, largest change of relevance relative to its largest entry).
ROUNDED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "step by the largest": (_by_largest, SAME),
    "step by a maximum": (_by_maximum, SAME),
    "step by a reciprocal": (_by_reciprocal, SAME),
    "step a power of two": (_by_power_of_two, SAME),
    "steps of groups": (_in_groups, SAME),
    "with a zero point": (_with_zero_point, SAME),
    "as bytes": (_as_bytes, SAME),
    "as int8": (_as_int8, SAME),
    "promoted": (_promoted, SAME),
    "product of integers": (_of_integers, 0.02),  # the weights are rounded as well, to 1/254 of the largest
    "straight-through function": (lambda z, w: StraightThrough.apply(z / STEP) * STEP @ w.T, SAME),
    "floor": (lambda z, w: torch.floor(z / STEP) * STEP @ w.T, SAME),
    "whole quotient": (lambda z, w: (z // STEP) * STEP @ w.T, SAME),
    "quotient cut off": (lambda z, w: torch.div(z, STEP, rounding_mode="trunc") * STEP @ w.T, SAME),
    "decimals": (lambda z, w: z.round(decimals=2) @ w.T, SAME),
    "detached trick": (lambda z, w: (z + ((z / STEP).round() * STEP - z).detach()) @ w.T, SAME),
    "fake quantisation": (lambda z, w: torch.fake_quantize_per_tensor_affine(z, 0.03, 0, -128, 127) @ w.T, SAME),
}


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """Inputs [18, 6] (integer products want more than 16 rows) and weights [8, 6]."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(18, 6, generator=rng).double(), torch.randn(8, 6, generator=rng).double()


@pytest.mark.parametrize("name", ROUNDED)
def test_a_layer_that_rounds_is_explained_as_the_one_that_does_not(name: str, drawn: tuple[Tensor, Tensor]) -> None:
    """y_k = sum_i W_ki z_i of a linear layer: R_i = W_ki z_i, by hand; what rounding changed is a leak."""
    layer, tolerance = ROUNDED[name]
    z, w = drawn
    by_hand = z * w[1]
    for ruleset in RULESETS:
        result = fxlrp.convert(Calls(lambda x: layer(x, w)), ruleset).attribute(z, target=1, ledger=True)
        error = float((result.relevance - by_hand).abs().max() / by_hand.abs().max())
        assert error <= tolerance, (ruleset, error)
        assert result.ledger is not None
        assert result.ledger.gap.abs().max() < 1e-9
        if name != "detached trick":  # whose author declares the change a constant
            changed = result.ledger.by_kind()["rounding"]
            assert torch.allclose(changed, layer(z, w)[:, 1] - by_hand.sum(-1), atol=30 * tolerance)


def test_the_gradient_is_that_of_a_straight_through_function(drawn: tuple[Tensor, Tensor]) -> None:
    z, w = drawn
    model = Calls(lambda x: StraightThrough.apply(x * 3).tanh() @ w.T)
    leaf = z.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    found = fxlrp.convert(model, "gradient").attribute(z, target=1).relevance
    assert torch.allclose(found, z * by_autograd, atol=1e-12)


def test_what_a_grid_cuts_off_passes_nothing_on(drawn: tuple[Tensor, Tensor]) -> None:
    """Fake quantisation: beyond its grid (here from -0.4 to 0.4) the derivative is 0, as torch's own is."""
    z, w = drawn
    model = Calls(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -4, 4) @ w.T)
    leaf = z.clone().requires_grad_()
    (by_torch,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert (by_torch == 0).any()
    found = fxlrp.convert(model, "gradient").attribute(z, target=1).relevance
    assert torch.allclose(found, z * by_torch, atol=1e-12)


@pytest.mark.parametrize("spelled", [lambda x: x - x.floor(), lambda x: x - x.trunc(), lambda x: x.frac()])
def test_what_rounding_leaves_over_has_a_slope_of_one(spelled: Callable[[Tensor], Tensor], drawn: Any) -> None:
    z, w = drawn
    found = fxlrp.convert(Calls(lambda x: spelled(x) @ w.T), "gradient").attribute(z, target=1).relevance
    assert torch.allclose(found, z * w[1], atol=1e-12)


def test_a_quotient_by_another_feature_is_no_step(drawn: tuple[Tensor, Tensor]) -> None:
    """y = round(100 a / b) / 100: half of a product's relevance is b's, of a rounded one as well."""
    z, _ = drawn

    def ratio(x: Tensor) -> Tensor:
        a, b = x[:, :3], x[:, 3:].abs() + 1
        return (a * b * 100).round() / 100

    found = fxlrp.convert(Calls(ratio), "conservative").attribute(z, target=1, ledger=True)
    a, b = z[:, 1], z[:, 4].abs() + 1
    assert torch.allclose(found.relevance[:, 1], a * b / 2, atol=1e-12)


def test_a_rounding_can_be_held_constant(drawn: tuple[Tensor, Tensor]) -> None:
    """The rule is a line of the rulesets like any other."""
    z, w = drawn
    rules = fxlrp.ruleset("conservative").override(rounding="constant")
    found = fxlrp.convert(Calls(lambda x: (x / STEP).round() * STEP @ w.T + x[:, :1]), rules).attribute(z, target=1)
    assert torch.equal(found.relevance[:, 1:], torch.zeros_like(z[:, 1:]))


GRID = torch.tensor([[1.3, 0.2, -0.4, -1.6, 0.5001]], dtype=torch.float64)  # rounded to 1, 0, 0, -2, 1
WEIGHTS = torch.tensor([[1.0, -2.0, 3.0, 0.5, -1.0]], dtype=torch.float64)


def test_what_was_rounded_to_zero_keeps_its_relevance() -> None:
    """In relevance R_x = x / y R_y, and R_y where y is 0; a layer that shares evenly gives every entry 1 / 5."""
    result = fxlrp.convert(Calls(lambda x: x.round() @ WEIGHTS.T), "epsilon-plus-flat").attribute(GRID, ledger=True)
    by_hand = torch.tensor([[1.3, 1.0, 1.0, 0.8, 0.5001]], dtype=torch.float64) / 5
    assert torch.allclose(result.relevance, by_hand, rtol=1e-5)  # the rule's epsilon is 1e-6
    assert result.ledger is not None
    assert torch.allclose(result.ledger.by_kind()["rounding"], 1 - by_hand.sum(1), rtol=1e-4)
    assert result.ledger.gap.abs().max() < 1e-9


@pytest.mark.parametrize("ruleset", ["epsilon-plus", "attnlrp-relevance", "full-lrp", "excitation-backprop"])
def test_an_activation_behind_a_rounding_hands_its_relevance_on(ruleset: str) -> None:
    """A sigmoid is 1/2 at 0 and hands that on: what arrives at x is what arrives at the sigmoid, x / y of it at y."""
    weights = WEIGHTS.abs()
    model = Calls(lambda x: x.round().sigmoid() @ weights.T)
    result = fxlrp.convert(model, ruleset).attribute(GRID, ledger=True)
    assert result.ledger is not None
    terms = GRID.round().sigmoid() * weights
    arrived = terms / terms.sum() * result.ledger.explained
    kept = torch.tensor([[1.3, 1.0, 1.0, 0.8, 0.5001]], dtype=torch.float64)
    assert torch.allclose(result.relevance, kept * arrived, rtol=1e-4)  # stabilisers keep 1e-5 of a share at most
    assert result.ledger.gap.abs().max() < 1e-9


@pytest.mark.parametrize("ruleset", ["guided-backprop", "deconvnet"])
def test_a_derivative_passes_through_rounding_as_it_is(ruleset: str) -> None:
    found = fxlrp.convert(Calls(lambda x: x.round() @ WEIGHTS.T), ruleset).attribute(GRID)
    assert torch.equal(found.features, WEIGHTS)
