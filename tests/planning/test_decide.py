"""Which rule a plan gives to which operation, where a ruleset chooses among the first and the last layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
import fxlrp.graph.order
from fxlrp.errors import UncoveredOperatorError
from tests.mutants.mutant import Mutant, attribute
from tests.rulesets.test_composites import built, image, plain, rules_of


def test_first_and_last_are_found_by_the_order_of_the_graph() -> None:
    spec = {"rule": "w_square"}
    rules = fxlrp.ruleset("epsilon-plus").override(linear=spec, where={"last": True})
    lrp = fxlrp.convert(built(plain), rules.override(convolution="flat", where={"first": True}), example_inputs=image())
    assert rules_of(lrp, "convolution") == ["flat", "z_plus"]
    assert rules_of(lrp, "linear") == ["epsilon", "w_square"]


def test_a_dense_layer_is_first_only_where_no_convolution_is_before_it() -> None:
    lrp = fxlrp.convert(built(plain), "epsilon-plus-flat", example_inputs=image())
    assert rules_of(lrp, "linear") == ["epsilon", "epsilon"]
    perceptron = built(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)))
    lrp = fxlrp.convert(perceptron, "epsilon-plus-flat", example_inputs=image()[:, 0])
    assert rules_of(lrp, "linear") == ["flat", "epsilon"]


class Branches(nn.Module):
    """Two inputs; a gate that a ruleset may hold constant; two convolutions side by side at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.gate, self.late = (nn.Conv1d(2, 2, 3, padding=1) for _ in range(4))
        self.ends = nn.ModuleList(nn.Conv1d(2, 2, 3) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.left(x) + self.right(y)
        h = self.late(h * torch.sigmoid(self.gate(x)))
        return torch.cat([end(h) for end in self.ends], 1).sum(2)


def test_where_ways_branch_there_are_several_first_and_last_layers() -> None:
    model, rules = built(Branches), fxlrp.ruleset("epsilon-plus").override(convolution="flat", where={"first": True})
    rules = rules.override(convolution="w_square", where={"last": True})
    x, y = torch.randn(2, 2, 2, 7, dtype=torch.float64)
    lrp = fxlrp.convert(model, rules, example_inputs={"x": x, "y": y})
    by_path = {row.modules: row.rule for row in lrp.plan.rows if row.pattern == "convolution"}
    assert by_path == {"left, right, gate": "flat", "late": "z_plus(epsilon=1e-06)", "ends.*": "w_square"}


def test_what_relevance_does_not_reach_is_no_first_layer() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.value(x * self.gate(x).softmax(-1))

    rules = fxlrp.ruleset("epsilon-plus").override(linear="flat", where={"first": True})
    x = torch.randn(2, 4, dtype=torch.float64)
    assert rules_of(fxlrp.convert(built(Gated), rules, example_inputs=x), "linear") == ["flat"]
    rules = rules.override(softmax="gradient")  # now it reaches the gate, and the value comes second
    assert rules_of(fxlrp.convert(built(Gated), rules, example_inputs=x), "linear") == ["flat", "epsilon"]


def _everywhere(kinds: Any, before: Any) -> Any:
    return kinds


def test_layers_that_are_all_first_are_noticed() -> None:
    Mutant(
        "every layer is a first one",
        attribute(fxlrp.graph.order, "foremost", _everywhere),
        test_first_and_last_are_found_by_the_order_of_the_graph,
    ).check()


@torch.library.custom_op("tests::unknown", mutates_args=())
def unknown(a: Tensor, b: Tensor) -> Tensor:
    """a^2 b, which no table knows."""
    return a * a * b


unknown.register_fake(lambda a, b: torch.empty_like(a))
unknown.register_autograd(
    lambda ctx, g: (2 * ctx.saved_tensors[0] * ctx.saved_tensors[1] * g, ctx.saved_tensors[0] ** 2 * g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Unknown(nn.Module):
    """Linear layers around an operator that no table knows; the factor b is a constant unless ``both``."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        y: Tensor = self.last(unknown(a, self.second(x) if self.both else self.second.bias.expand_as(a)))
        return y


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ruleset", ["gradient", "conservative", "attnlrp"])
@pytest.mark.parametrize("message", ["gradient", "relevance"])
def test_an_unknown_operator_takes_the_gradient_where_that_is_asked_for(both: bool, ruleset: str, message: str) -> None:
    """R = x g, whatever travels: linear layers keep it, and the unknown operator passes its derivative on."""
    torch.manual_seed(0)
    model, x = Unknown(both).double().eval(), torch.randn(2, 4, dtype=torch.float64)
    rules = fxlrp.ruleset(ruleset).override(message=message)
    with pytest.raises(UncoveredOperatorError, match=r"tests\.unknown.*\n.*or convert with strict=False"):
        fxlrp.convert(model, rules).attribute(x, target=1)
    lrp = fxlrp.convert(model, rules, strict=False)
    with pytest.warns(
        UserWarning, match=r"tests\.unknown in 'the top level': as strict=False asks, the fallback 'grad"
    ):
        found = lrp.attribute(x, target=1, ledger=True)
    assert found.ledger is not None
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.relevance, x * wanted, rtol=1e-9, atol=1e-12)
    assert "fxlrp does not know the operator" in str(lrp.plan)
