"""Callable targets are part of the model: rules stand in them; relevance handed in; outputs that are exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.testing.weights import realistic
from tests.support.zoo import WORDS

Function = Callable[[Any], Tensor]
REFERENCE = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


class Encoder(nn.Module):
    """x [batch, 4] to h [batch, 6], or to a function of h."""

    def __init__(self, function: Function | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.function = nn.Linear(4, 8), nn.Linear(8, 6), function

    def forward(self, x: Tensor) -> Any:
        outputs = {"h": self.second(F.relu(self.first(x)))}
        return outputs if self.function is None else self.function(outputs)[:, None]


def cosine(outputs: Any) -> Tensor:
    return F.cosine_similarity(outputs["h"], REFERENCE, dim=-1)


def by_norms(outputs: Any) -> Tensor:
    h = outputs["h"]
    return (h * REFERENCE).sum(-1) / (h.norm(dim=-1) * REFERENCE.norm())


def squares(outputs: Any) -> Tensor:
    return outputs["h"].square().sum(-1)


def entry(outputs: Any) -> Tensor:
    return outputs["h"][:, 1]


def of_the_largest(outputs: Any) -> Tensor:
    return outputs["h"][:, int(outputs["h"][0].argmax())]


def draw(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("ruleset", ["gradient", "attnlrp", "conservative", "epsilon-plus", "guided-backprop"])
@pytest.mark.parametrize("function", [cosine, by_norms, squares, entry, of_the_largest])
def test_a_function_is_explained_as_inside_the_model(function: Function, ruleset: str) -> None:
    outside = fxlrp.convert(Encoder().double().eval(), ruleset).attribute(draw(), target=function)
    inside = fxlrp.convert(Encoder(function).double().eval(), ruleset).attribute(draw(), target=0)
    assert outside.relevance.abs().max() > 0
    torch.testing.assert_close(outside.relevance, inside.relevance)
    torch.testing.assert_close(outside.explained, inside.explained)
    assert outside.target is function
    assert set(outside.outputs) == {"h"}


@pytest.mark.parametrize("function", [cosine, by_norms, squares])
def test_nothing_is_lost_in_a_function(function: Function) -> None:
    ledger = (
        fxlrp.convert(Encoder().double().eval(), "conservative").attribute(draw(), target=function, ledger=True).ledger
    )
    assert ledger is not None
    assert "target function" not in ledger.by_kind()
    assert ledger.gap.abs().max() < 1e-12


def test_a_similarity_by_hand() -> None:
    """Norms are constant factors of a quotient: R = h_j r_j / (|h| |r|), which the model hands on."""
    model, x = Encoder().double().eval(), draw().requires_grad_()
    h = model(x)["h"]
    (gradient,) = torch.autograd.grad(
        (h * REFERENCE / (h.norm(dim=-1, keepdim=True) * REFERENCE.norm()).detach()).sum(), x
    )
    rules = fxlrp.ruleset("conservative")
    found = fxlrp.convert(model, rules).attribute(x.detach(), target=by_norms)
    torch.testing.assert_close(found.relevance, (x * gradient).detach())


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 7).double()}])
def test_a_loss_is_a_function_as_any_other(options: dict[str, Any]) -> None:
    model, x = Encoder().double().eval(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 5, 2])

    def loss(outputs: Any) -> Tensor:
        return -F.cross_entropy(outputs["h"], labels, reduction="none", **options)

    (gradient,) = torch.autograd.grad(loss(model(x)).sum(), x)
    for ruleset in ("gradient", "epsilon"):  # biases apart
        found = fxlrp.convert(model, ruleset).attribute(x.detach(), target=loss)
        torch.testing.assert_close(found.relevance, gradient * x.detach(), atol=1e-8, rtol=1e-6)


def test_guided_backpropagation_begins_with_the_derivative() -> None:
    model, x = Encoder().double().eval(), draw()
    h = model(x)["h"].detach().requires_grad_()
    (begun,) = torch.autograd.grad(cosine({"h": h}).sum(), h)
    active = F.linear(x, model.first.weight, model.first.bias) > 0
    expected = ((begun @ model.second.weight).clamp(min=0) * active) @ model.first.weight
    found = fxlrp.convert(model, "guided-backprop").attribute(x, target=cosine).relevance
    torch.testing.assert_close(found, expected.detach())


def test_what_a_function_holds_may_change() -> None:
    held = REFERENCE.clone()

    def function(outputs: Any) -> Tensor:
        return (outputs["h"] * held).sum(-1)

    lrp = fxlrp.convert(Encoder().double().eval(), "gradient")
    before = lrp.attribute(draw(), target=function).relevance
    held.mul_(2)
    torch.testing.assert_close(lrp.attribute(draw(), target=function).relevance, 2 * before)
    held = -held
    torch.testing.assert_close(lrp.attribute(draw(), target=function).relevance, -2 * before)


def test_other_batches_and_fresh_functions_capture_no_model_anew() -> None:
    lrp = fxlrp.convert(Encoder().double().eval(), "attnlrp")
    whole = lrp.attribute(draw(5), target=cosine).relevance
    for i in range(5):
        alone = lrp.attribute(draw(5)[i : i + 1], target=cosine).relevance
        torch.testing.assert_close(alone[0], whole[i])
    for k in range(12):
        lrp.attribute(draw(), target=lambda outputs, k=k: outputs["h"][:, k % 6])
    assert lrp.captures == 1


def test_target_less_contrast_of_functions_and_classes() -> None:
    lrp = fxlrp.convert(Encoder().double().eval(), "attnlrp")
    one, other = (lrp.attribute(draw(), target=each).relevance for each in (squares, 2))
    for target, contrast, sign in ((squares, 2, 1), (2, squares, -1)):
        found = lrp.attribute(draw(), target=target, contrast=contrast).relevance
        torch.testing.assert_close(found, sign * (one - other))


def test_hidden_states_of_a_language_model() -> None:
    model = realistic(transformers.BertModel(transformers.BertConfig(**WORDS)).double().eval(), 0)
    ids = torch.tensor([[0, 17, 5, 21, 2], [0, 9, 33, 4, 2]])
    other = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def similarity(outputs: Any) -> Tensor:
        return F.cosine_similarity(outputs.last_hidden_state.mean(1), other, dim=-1)

    found = fxlrp.convert(model, "conservative").attribute({"input_ids": ids}, target=similarity, ledger=True)
    assert found.ledger is not None
    assert "target function" not in found.ledger.by_kind()
    assert found.ledger.gap.abs().max() < 1e-9
    assert found.relevance.abs().max() > 1e-3
    assert found.label == ["similarity", "similarity"]


def test_a_function_that_cannot_be_captured_says_what_is_lost() -> None:
    calls = count(1)

    def counting(outputs: Any) -> Tensor:
        return outputs["h"].square().sum(-1) * next(calls)

    with pytest.warns(UserWarning, match="cannot be captured .* 100% of the explained value"):
        found = fxlrp.convert(Encoder().double().eval(), "conservative").attribute(draw(), target=counting)
    assert found.relevance.abs().max() > 0


def test_a_function_gives_one_scalar_per_sample() -> None:
    lrp = fxlrp.convert(Encoder().double().eval(), "gradient")
    with pytest.raises(fxlrp.TargetError, match=r"tensor of shape \[batch\]"):
        lrp.attribute(draw(), target=lambda outputs: outputs["h"])
    with pytest.raises(fxlrp.TargetError, match="computed from the outputs"):
        lrp.attribute(draw(), target=lambda outputs: outputs["h"].detach().sum(-1))


# --- half precision ------------------------------------------------------------------------------------------------


def against_the_reference(outputs: Any) -> Tensor:
    assert outputs["h"].dtype is not torch.float32  # what the model gives, in whose type a function may insist
    return outputs["h"] @ REFERENCE.to(outputs["h"].dtype)


def unsteady(outputs: Any) -> Tensor:
    """Not to be captured: without gradients it is another function at every call."""
    return against_the_reference(outputs) * (1 if outputs["h"].requires_grad else next(CALLS))


CALLS = count(1)


@pytest.mark.parametrize("function", [cosine, squares, against_the_reference, unsteady])
@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_outputs_are_the_models_own(dtype: torch.dtype, ledger: bool, function: Function) -> None:
    """And relevance is that of the same weights in float32, but for the function's own rounding, some 8 eps."""
    model, x = Encoder().to(dtype).eval(), draw().to(dtype)
    lrp = fxlrp.convert(model, "gradient")
    with pytest.warns(UserWarning, match="cannot be captured") if function is unsteady else nullcontext():
        found = lrp.attribute(x, target=function, ledger=ledger)
    assert found.outputs["h"].dtype is dtype
    assert torch.equal(found.outputs["h"], model(x)["h"])
    leaf = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(function(model.double()(leaf)).sum(), leaf)
    expected = leaf.detach() * gradient
    assert found.relevance.dtype is torch.float32
    apart = (found.relevance.double() - expected).abs().max() / expected.abs().max()
    assert apart <= 8 * torch.finfo(dtype).eps
    if ledger:
        assert found.ledger is not None
        assert found.ledger.gap.abs().max() <= 1e-5 * found.ledger.explained.abs().max()


# --- outputs that are exactly 0 -------------------------------------------------------------------------------------


class Balanced(nn.Module):
    """y = relu(w x) - relu(w x) + ...: exactly 0 wherever the third unit is off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, -1.0, 3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("target", [0, lambda y: y[:, 0]])
def test_an_output_of_zero_begins_with_one(target: Any) -> None:
    x = torch.tensor([[1.0, 1.0], [-1.0, 2.0]])
    model = Balanced().eval()
    assert model(x)[:, 0].tolist() == [0, 3]
    found = fxlrp.convert(model, "guided-backprop").attribute(x, target=target).relevance
    # ReLUs hand on what is positive: 1 of the first unit and, where the third is on, 3 of that.
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0], [1.0 - 3.0, 2.0]]))
    with pytest.raises(fxlrp.TargetError, match="no ledger"):
        fxlrp.convert(model, "guided-backprop").attribute(x, target=target, ledger=True)


# --- relevance that is handed in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruleset", ["gradient", "attnlrp", "epsilon-plus", "guided-backprop"])
def test_relevance_handed_in_at_one_output_is_that_output_explained(ruleset: str) -> None:
    lrp = fxlrp.convert(Encoder(lambda outputs: outputs["h"].sum(-1)).double().eval(), ruleset)
    y = lrp.model(draw()).detach()
    target = lrp.attribute(draw(), target=0).relevance
    begun = torch.ones_like(y) if lrp.ruleset.seed.amount is not None else y
    found = lrp.attribute(draw(), relevance=2 * begun)
    torch.testing.assert_close(found.relevance, 2 * target)
    torch.testing.assert_close(found.explained, 2 * begun[:, 0])


def test_any_relevance_is_the_sum_over_outputs() -> None:
    model, x = Encoder().double().eval(), draw()
    given = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaf = x.clone().requires_grad_()
    h = model(leaf)["h"]
    (gradient,) = torch.autograd.grad(h, leaf, given / h.detach())
    found = fxlrp.convert(model, "gradient").attribute(x, relevance=given, ledger=True)
    torch.testing.assert_close(found.relevance, x * gradient)
    torch.testing.assert_close(found.explained, given.sum(1))
    assert found.ledger is not None
    assert found.ledger.gap.abs().max() < 1e-12
    assert found.label == ["the relevance handed in"] * 3


@pytest.mark.parametrize(
    ("relevance", "options", "message"),
    [
        (torch.ones(3, 5), {}, r"has the shape \[3, 5\]: it must be that of the logits, \[3, 6\]"),
        (torch.ones(6), {}, r"has the shape \[6\]"),
        (torch.full((3, 6), torch.nan), {}, "not finite"),
        (torch.ones(3, 6), {"target": 1}, "no target or contrast beside it"),
    ],
)
def test_relevance_that_does_not_fit(relevance: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxlrp.TargetError, match=message):
        fxlrp.convert(Encoder().double().eval(), "gradient").attribute(draw(), relevance=relevance, **options)


def test_an_output_of_zero_carries_no_relevance_that_is_handed_in() -> None:
    lrp = fxlrp.convert(Balanced().eval(), "gradient")
    with pytest.raises(fxlrp.TargetError, match="at an output that is exactly 0"):
        lrp.attribute(torch.ones(1, 2), relevance=torch.ones(1, 1))
    assert (lrp.attribute(torch.ones(1, 2), relevance=torch.zeros(1, 1)).relevance == 0).all()
