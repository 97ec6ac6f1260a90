"""Composites for convolutional networks: the laws of their rules.

Guided and excitation backpropagation are compared with hooks and loops written here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
import fxlrp.graph.order
from fxlrp.rules import RULES, primitives, relevance
from fxlrp.testing import RandomGraph, check_conservation, check_rule
from fxlrp.testing.weights import realistic
from tests.mutants.mutant import Mutant, attribute, changed_rule, changed_shares

COMPOSITES = (
    "epsilon-plus",
    "epsilon-plus-flat",
    "epsilon-gamma-box",
    "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
    "excitation-backprop",
    "guided-backprop",
    "deconvnet",
)


class Residual(nn.Module):
    """A stem, two blocks of convolutions with batch norms and a skip connection, average pool, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first, self.second = self.block(), self.block()
        self.head = nn.Linear(4, 5)

    @staticmethod
    def block() -> nn.Sequential:
        convolutions = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
        return nn.Sequential(convolutions[0], nn.BatchNorm2d(4), nn.ReLU(), convolutions[1], nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Layers that each see all values before them, with batch norms before their convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 * i) for i in (1, 2, 3))
        self.layers = nn.ModuleList(nn.Conv2d(3 * i, 3, 3, padding=1) for i in (1, 2, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return self.head(F.avg_pool2d(x, 2).amax((2, 3)))


def plain(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(8, 10, bias=bias), nn.ReLU(), nn.Linear(10, 5, bias=bias)),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "dense": Dense, "plain": plain}


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return realistic(make(), seed).double().eval()


@cache
def converted(model: str) -> fxlrp.ConvertedModel:
    """One capture for all rulesets."""
    return fxlrp.convert(built(MODELS[model]), "gradient")


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    assert float(b.detach().abs().max()) > 1e-9, "there is nothing to compare"
    return float(((a - b).abs().max() / b.abs().max()).detach())


def rules_of(lrp: fxlrp.ConvertedModel, category: str) -> list[str]:
    nodes = lrp.plan.program.graph.nodes
    decided = (lrp.plan.decisions[node] for node in nodes if node in lrp.plan.decisions)
    return [decision.rule.name for decision in decided if str(decision.category) == category]


@pytest.mark.parametrize("ruleset", COMPOSITES)
@pytest.mark.parametrize("model", MODELS)
def test_the_ledger_closes(model: str, ruleset: str) -> None:
    check_conservation(converted(model), ruleset, image(), target=1).raise_if_failed()


@pytest.mark.parametrize("code", ["v1 = cross_attention(x, y)", "v1 = recurrence(x)"])
def test_found_in_random_graphs(code: str) -> None:
    """An input that nothing reaches decided which message the other one received; one of several values had no
    operand in the ledger.
    """
    graph = RandomGraph.parse(code)
    check_conservation(graph.module(), "epsilon-plus", graph.inputs(), target=1).raise_if_failed()


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("flat", {"epsilon": 0.0}),
    ("flat", {"epsilon": 0.1, "stabiliser": "masked"}),
    ("w_square", {"epsilon": 0.0}),
    ("w_square", {"epsilon": 0.1}),
    ("z_box", {"low": -3.0, "high": 3.0, "epsilon": 0.0}),
    ("z_box", {"low": -1.0, "epsilon": 0.1, "stabiliser": "unsigned"}),
)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=[f"{n}-{p}" for n, p in VARIANTS])
def test_rule_keeps_its_promises_with_other_parameters(name: str, parameters: dict[str, Any]) -> None:
    check_rule(RULES[name], seeds=(0, 1), parameters=parameters).raise_if_failed()


# --- laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Linear(8, 7)]
)
@pytest.mark.parametrize(
    "rule", [{"rule": "flat"}, {"rule": "w2"}, {"rule": "zbox"}, {"rule": "zbox", "low": -5.0, "high": 5.0}]
)
def test_t20_flat_w_square_and_z_box_conserve_exactly_without_stabiliser(
    layer: nn.Module, rule: dict[str, Any]
) -> None:
    """Per sample, whatever the bias: sum of R_x = sum of R_y."""
    model = nn.Sequential(built(lambda: copy.deepcopy(layer)), nn.Flatten(), nn.LazyLinear(3, bias=False).double())
    model(image())
    rules = fxlrp.ruleset("epsilon-plus").override(epsilon=0.0)
    rules = rules.override(**{key: {**rule, "epsilon": 0.0} for key in ("linear", "convolution")}, where="0")
    result = fxlrp.convert(model.eval(), rules).attribute(image(), target=1, at=["0"])
    arrived = result.at["0"].flatten(1).sum(1)
    assert torch.allclose(result.relevance.flatten(1).sum(1), arrived, rtol=1e-10, atol=1e-12)
    assert float(arrived.abs().min()) > 1e-3


@pytest.mark.parametrize("ruleset", ["epsilon-plus", "epsilon-alpha2-beta1", "excitation-backprop"])
def test_t21_contributions_by_sign_conserve_without_biases_and_dead_outputs(ruleset: str) -> None:
    model = built(lambda: plain(bias=False))
    positive = image().abs()  # so that every output has contributions of both signs
    rules = fxlrp.ruleset(ruleset).override(bias_share="none", epsilon=0.0)
    result = fxlrp.convert(model, rules).attribute(positive, target=1)
    assert torch.allclose(result.relevance.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64), rtol=1e-9)


def test_t22_gamma_conserves_without_biases() -> None:
    rules = fxlrp.ruleset("epsilon-gamma-box").override(epsilon=0.0)
    result = fxlrp.convert(built(lambda: plain(bias=False)), rules).attribute(image(), target=1)
    assert torch.allclose(result.relevance.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64), rtol=1e-9)


def test_t23_relevance_grows_in_proportion_to_the_seed() -> None:
    """Not so where negative messages are cut off: guided backpropagation of a negative output is another map."""
    model, x = built(Residual), image()
    for ruleset in COMPOSITES[:6]:
        one, logit = (
            fxlrp.convert(model, fxlrp.ruleset(ruleset).override(seed=seed)).attribute(x, target=1)
            for seed in ("one", "logit")
        )
        assert distance(one.relevance * logit.explained[:, None, None, None], logit.relevance) < 1e-10


def test_bounds_are_those_of_each_sample_unless_given() -> None:
    model, x = built(plain), image()
    own = fxlrp.convert(model, "epsilon-gamma-box").attribute(x, target=1).relevance
    for sample, expected in zip(x, own, strict=True):
        rules = fxlrp.ruleset("epsilon-gamma-box").override(low=float(sample.min()), high=float(sample.max()))
        assert distance(fxlrp.convert(model, rules).attribute(sample[None], target=1).relevance[0], expected) < 1e-12


# --- methods beside the composites, as hooks compute them -------------------------------------------------------


def gradient_with(model: nn.Module, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of output 1 where each ReLU sends back ``change(message, its true gradient)``."""
    hooks = [
        module.register_full_backward_hook(lambda module, given, arrived: (change(arrived[0], given[0]),))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    for hook in hooks:
        hook.remove()
    return gradient


def test_guided_backprop_is_what_hooks_compute() -> None:
    model, x = built(plain), image()
    expected = gradient_with(model, x, lambda message, gradient: gradient * (message > 0))
    assert distance(fxlrp.convert(model, "guided-backprop").attribute(x, target=1).relevance, expected) < 1e-12
    assert distance(gradient_with(model, x, lambda message, gradient: gradient), expected) > 1e-3


def test_deconvnet_is_what_hooks_compute() -> None:
    model, x = built(plain), image()
    expected = gradient_with(model, x, lambda message, gradient: message.clamp(min=0))
    assert distance(fxlrp.convert(model, "deconvnet").attribute(x, target=1).relevance, expected) < 1e-12


def excitation(model: nn.Sequential, x: Tensor) -> Tensor:
    """Layer by layer from the output down; x, and with it every value, is positive or zero."""
    values = [x]
    for layer in model:
        values.append(layer(values[-1]))
    message = F.one_hot(torch.ones(len(x), dtype=torch.long), 5).double()
    for layer, value in zip(reversed(model), reversed(values[:-1]), strict=True):
        leaf = value.detach().requires_grad_()
        if isinstance(layer, nn.Linear | nn.Conv2d):
            winners = copy.deepcopy(layer)
            winners.weight, winners.bias = nn.Parameter(layer.weight.clamp(min=0)), None
            z = winners(leaf)
        elif isinstance(layer, nn.AvgPool2d):
            z = layer(leaf)
        else:
            z = layer(leaf)
            (message,) = torch.autograd.grad(z, leaf, message)
            continue
        (share,) = torch.autograd.grad(z, leaf, message / (z + 1e-6))
        message = value * share
    return message


def test_excitation_backprop_without_biases_is_the_papers() -> None:
    model, x = built(plain), image().abs()
    rules = fxlrp.ruleset("excitation-backprop").override(bias_share="none")
    found = fxlrp.convert(model, rules).attribute(x, target=1).relevance
    assert distance(found, excitation(model, x)) < 1e-12
    assert distance(fxlrp.convert(model, "excitation-backprop").attribute(x, target=1).relevance, found) > 1e-4


# --- the tests above can fail ---------------------------------------------------------------------------------


def _bounds_of_the_batch(op: Any, x: Tensor, *rest: Any, original: Any = relevance.z_box.shares, **options: Any) -> Any:
    return original(op, x, *rest, **{**options, "low": float(x.min()), "high": float(x.max())})


MUTANTS = (
    Mutant(
        "bounds of the batch, not of the sample",
        changed_shares("z_box", _bounds_of_the_batch),
        test_bounds_are_those_of_each_sample_unless_given,
    ),
    Mutant(
        "guided backprop without the gradient of ReLU",
        changed_rule("guided", surrogate=RULES["deconvnet"].surrogate),
        test_guided_backprop_is_what_hooks_compute,
    ),
    Mutant(
        "negative messages pass",
        attribute(relevance, "positive_message", lambda x: primitives.scale_message(x, 1.0)),
        test_deconvnet_is_what_hooks_compute,
    ),
    Mutant(
        "w-square of the flat rule",
        changed_rule("w_square", surrogate=RULES["flat"].surrogate),
        lambda: test_rule_keeps_its_promises_with_other_parameters("w_square", {"epsilon": 0.1}),
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_is_noticed(mutant: Mutant) -> None:
    mutant.check()
