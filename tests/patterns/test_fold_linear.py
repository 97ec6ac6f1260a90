"""Batch norms that rulesets fold into the layer before them: the same relevance, in exported and recorded models."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import Tensor, nn

import fxlrp
import fxlrp.graph.order
from fxlrp.patterns import fold_linear
from fxlrp.testing import check_conservation
from tests.mutants.mutant import Mutant
from tests.rulesets.test_composites import COMPOSITES, built, distance, image, rules_of


class Normalised(nn.Module):
    """Batch norms behind every kind of linear map, some of them spelled out, one that has another user."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            [
                nn.Conv2d(3, 4, 3, bias=False),
                nn.ConvTranspose2d(4, 3, 2),
                nn.Conv2d(3, 4, 3, groups=1, stride=2),
                nn.Linear(4, 9),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.BatchNorm1d(9)])
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.maps[0](x)))
        x = torch.relu(self.norms[1](self.maps[1](x)))
        x = torch.relu((1.5 - self.norms[2](self.maps[2](x)) / 2) * 3)
        return self.head(torch.relu(self.norms[3](self.maps[3](x.mean((2, 3))))))


@torch.no_grad()
def folded(model: Normalised) -> Normalised:
    """The same with every norm, and what is spelled out, worked into the maps by hand."""
    made = copy.deepcopy(model)
    for i, (layer, norm) in enumerate(zip(made.maps, made.norms, strict=True)):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(norm.bias) if layer.bias is None else layer.bias
        bias = (bias - norm.running_mean) * scale + norm.bias
        if i == 2:
            scale, bias = -1.5 * scale, 4.5 - 1.5 * bias
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        spread = [-1 if j == axis else 1 for j in range(layer.weight.ndim)]
        layer.weight, layer.bias = nn.Parameter(layer.weight * scale.reshape(spread)), nn.Parameter(bias)
        made.norms[i] = nn.Identity().eval()

    def forward(x: Tensor) -> Tensor:
        for layer in made.maps[:3]:
            x = torch.relu(layer(x))
        return made.head(torch.relu(made.maps[3](x.mean((2, 3)))))

    made.forward = forward  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("ruleset", COMPOSITES)
def test_a_batch_norm_is_one_with_the_layer_before_it(ruleset: str) -> None:
    model = built(Normalised)
    by_hand = folded(model)
    assert distance(by_hand(image()), model(image())) < 1e-12
    lrp = fxlrp.convert(model, ruleset)
    assert distance(lrp(image()), model(image())) < 1e-12
    expected = fxlrp.convert(by_hand, ruleset).attribute(image(), target=0, ledger=True)
    found = lrp.attribute(image(), target=0, ledger=True)
    assert distance(found.relevance, expected.relevance) < 1e-11
    assert expected.ledger is not None
    assert found.ledger is not None
    for kind, amount in expected.ledger.by_kind().items():
        assert torch.allclose(found.ledger.by_kind()[kind], amount, atol=1e-9), kind


def test_folding_is_for_rulesets_that_ask_and_leaves_modules_in_place() -> None:
    lrp = fxlrp.convert(built(Normalised), "epsilon-plus", example_inputs=image())
    apart = lrp.with_ruleset(fxlrp.ruleset("epsilon-plus").override(fold=[]))
    assert rules_of(lrp, "shift") == []
    assert rules_of(apart, "shift").count("pass_through") == 2 * 4
    assert lrp.captures == apart.captures == 1
    one, other = (made.attribute(image(), target=1, at=["maps.*", "norms.*"]) for made in (lrp, apart))
    assert set(other.at) == {f"{kind}.{i}" for kind in ("maps", "norms") for i in range(4)}
    assert set(other.at) - set(one.at) == {"norms.2"}  # steps of the model's own follow it in the chain
    assert torch.equal(one.at["maps.0"], one.at["norms.0"])  # the norm is part of the map: nothing lies between
    assert torch.equal(other.at["maps.0"], other.at["norms.0"])  # apart it passes relevance on as it is
    assert distance(one.relevance, other.relevance) > 1e-3
    assert fxlrp.ruleset("conservative").fold == ()


def test_a_map_whose_result_is_used_twice_keeps_its_batch_norm_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x)
            return torch.relu(self.norm(y) + y).sum((2, 3))

    model = built(Twice)
    lrp = fxlrp.convert(model, "epsilon-plus", example_inputs=image())
    assert rules_of(lrp, "shift") == ["pass_through", "pass_through"]
    check_conservation(lrp, "epsilon-plus", image(), target=1).raise_if_failed()


def test_a_recorded_model_and_half_precision_are_folded_as_well() -> None:
    class Deciding(Normalised):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return 2 * y if bool(y.sum() > 1e9) else y

    recorded = built(Deciding)
    with pytest.warns(fxlrp.RetraceWarning):
        lrp = fxlrp.convert(recorded, "epsilon-plus", example_inputs=image())
    expected = fxlrp.convert(built(Normalised), "epsilon-plus").attribute(image(), target=1).relevance
    assert rules_of(lrp, "shift") == []
    assert distance(lrp.attribute(image(), target=1).relevance, expected) < 1e-11
    narrow = fxlrp.convert(built(Normalised).bfloat16(), "epsilon-plus", example_inputs=image().bfloat16())
    assert rules_of(narrow, "shift") == []
    assert distance(narrow(image().bfloat16()).double(), recorded(image())) < 0.1


def test_a_folded_shift_that_is_not_scaled_is_noticed() -> None:
    Mutant(
        "a folded shift is not scaled",
        lambda patch: patch.setitem(
            fold_linear.STEPS, operator.mul, (lambda a, b, c: (fold_linear.times(a, c), b), None)
        ),
        lambda: test_a_batch_norm_is_one_with_the_layer_before_it("epsilon-plus"),
    ).check()
