"""Read-outs that compare with a reference or average over several inputs: DeepLIFT, RelP, integrated gradients,
SmoothGrad.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import InputError
from fxlrp.rules.rescale import gauss_legendre
from tests.support.small_models import MODELS, by_sample, converted, inputs, relative


def seeded(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.double().eval()


class Pairs(nn.Module):
    """Products, quotients, maxima, a norm and a softmax of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        h = a * b + a / (2 + b * b) + torch.maximum(a, b) + a.softmax(-1) * b.logsumexp(-1, keepdim=True)
        h = h / torch.linalg.vector_norm(h, dim=-1, keepdim=True) + b.clamp(-0.5, 0.5) + a.sort(-1)[0]
        return self.head(h)  # type: ignore[no-any-return]


def small(name: str) -> tuple[nn.Module, Tensor]:
    rng = torch.Generator().manual_seed(5)
    if name == "mlp":
        return seeded(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3)), torch.randn(3, 6, generator=rng).double()
    if name == "cnn":
        convolution = (nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3))
        return seeded(*convolution, nn.Flatten(), nn.Linear(27, 4)), torch.randn(3, 2, 8, 8, generator=rng).double()
    return seeded(Pairs()), torch.randn(3, 6, generator=rng).double()


def other(name: str) -> dict[str, Tensor]:
    """Another pair of samples."""
    return inputs(name, seed=1)


@pytest.mark.parametrize("reference", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "pairs"])
def test_differences_add_up(name: str, reference: bool) -> None:
    """DeepLIFT's summation to delta: sum of (x - x_ref) g = f(x) - f(x_ref), whatever the operations."""
    model, x = small(name)
    there = x.flip(0) * 0.3 + 0.1 if reference else torch.zeros_like(x)
    result = fxlrp.attribute(model, x, ruleset="deeplift-rescale", target=1, reference=there if reference else None)
    with torch.no_grad():
        expected = (model(x) - model(there))[:, 1]
    assert torch.allclose(result.explained, expected, atol=1e-12)
    assert (by_sample(result.relevance) - expected).abs().max() < 1e-12
    assert torch.equal(result.outputs, model(x))
    assert not result.relevance.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_differences_add_up_in_transformers(name: str) -> None:
    lrp = converted(name).with_ruleset("deeplift-rescale")
    result = lrp.attribute(inputs(name), target=1, reference=other(name))
    assert (by_sample(result.relevance) - result.explained).abs().max() < 1e-11
    back = lrp.attribute(other(name), target=1, reference=inputs(name))
    assert relative(-back.features, result.features) < 1e-9, "the rule is symmetric in input and reference"


def test_differences_from_zero_embeddings_add_up() -> None:
    result = converted("bert").with_ruleset("deeplift-rescale").attribute(inputs("bert"), target=1)
    assert (by_sample(result.relevance) - result.explained).abs().max() < 1e-11


def test_one_reference_stands_for_a_batch_and_samples_stay_apart() -> None:
    model, x = small("pairs")
    lrp = fxlrp.convert(model, "deeplift-rescale")
    together = lrp.attribute(x, target=1, reference=x[:1] * 0.2)
    alone = [lrp.attribute(x[i : i + 1], target=1, reference=x[:1] * 0.2).relevance for i in range(len(x))]
    assert torch.allclose(together.relevance, torch.cat(alone), atol=1e-13)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh])
def test_rescale_from_zero_is_the_epsilon_rule_with_secants(activation: type[nn.Module]) -> None:
    """Without biases and with f(0) = 0 every reference value is 0, and dy / dx is f(x) / x."""
    layers = (nn.Linear(6, 9, bias=False), activation(), nn.Linear(9, 5, bias=False), activation())
    model = seeded(*layers, nn.Linear(5, 3, bias=False))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    rules = fxlrp.ruleset("epsilon").override(epsilon=0.0)
    secants = fxlrp.attribute(model, x, ruleset=rules, target=1)
    rescaled = fxlrp.attribute(model, x, ruleset="deeplift-rescale", target=1)
    assert relative(rescaled.relevance, secants.relevance) < 1e-12


def test_rescale_of_a_product_is_the_integrated_gradient() -> None:
    """A quadratic form has its mean gradient at the midpoint."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = self.a(x) * self.b(x)
            return product

    torch.manual_seed(0)
    model, x = Quadratic().double().eval(), torch.randn(2, 4).double()
    there = torch.randn(2, 4).double()
    mean = fxlrp.ruleset("integrated-gradients").override(readout={"steps": 1})
    results = [
        fxlrp.attribute(model, x, ruleset=rules, target=1, reference=there) for rules in ("deeplift-rescale", mean)
    ]
    assert relative(results[0].relevance, results[1].relevance) < 1e-12


def test_a_converted_model_compares_with_zeros() -> None:
    model, x = small("cnn")
    lrp = fxlrp.convert(model, "deeplift-rescale")
    x.requires_grad_()
    outputs = lrp(x)
    assert torch.equal(outputs, model(x))
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), x)
    assert torch.allclose(x * gradient, lrp.attribute(x.detach(), target=1).relevance)


def test_a_maximum_goes_to_the_entry_that_moves_it() -> None:
    """The published rule for max: the winner on the input where it rises, that on the reference where it falls."""
    model = nn.MaxPool1d(2).double().eval()
    x = torch.tensor([[[3.0, 1.0, 0.5, 0.0]]], dtype=torch.float64)
    there = torch.tensor([[[1.0, 2.0, 0.0, 4.0]]], dtype=torch.float64)
    outcome = [
        fxlrp.attribute(model, x, ruleset="deeplift-rescale", target=(0, k), reference=there).relevance for k in (0, 1)
    ]
    assert torch.allclose(outcome[0], torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]).double())
    assert torch.allclose(outcome[1], torch.tensor([[[0.0, 0.0, 0.0, -3.5]]]).double())


def activations(lrp: fxlrp.ConvertedModel, given: Mapping[str, Any], path: str) -> Tensor:
    """What a module of the original model puts out."""
    found: list[Any] = []
    hook = lrp.model.get_submodule(path).register_forward_hook(lambda *call: found.append(call[2]))
    with torch.no_grad():
        lrp.model(**given)
    hook.remove()
    value: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
    return value


@pytest.mark.parametrize(("name", "path"), [("gpt2", "transformer.h.0.mlp"), ("llama", "model.layers.1.self_attn")])
def test_patching_scores_are_differences_of_activations_times_messages(name: str, path: str) -> None:
    """(a_clean - a_corrupt) g(a_corrupt), at embeddings and at any module."""
    lrp = converted(name).with_ruleset("relp")
    corrupt, clean = inputs(name), other(name)
    scores = lrp.attribute(corrupt, target=1, reference=clean, at=[path])
    plain = lrp.with_ruleset(fxlrp.ruleset("relp").override(readout={"kind": "input"}))
    relevance = plain.attribute(corrupt, target=1, at=[path], ledger=True)
    a, a_clean = (activations(lrp, given, path) for given in (corrupt, clean))
    assert relative(scores.at[path], (a_clean - a) * relevance.at[path] / a) < 1e-9
    table = lrp.model.get_input_embeddings().weight.detach()
    x, x_clean = table[corrupt["input_ids"]], table[clean["input_ids"]]
    assert relative(scores.features, (x_clean - x) * relevance.features / x) < 1e-9
    assert torch.equal(scores.explained, relevance.explained)
    assert relevance.ledger is not None
    assert relevance.ledger.gap.abs().max() < 1e-12


def test_patching_a_linear_model_says_what_patching_does() -> None:
    model = seeded(nn.Linear(5, 4), nn.Linear(4, 3))
    corrupt, clean = torch.randn(2, 2, 5).double()
    scores = fxlrp.attribute(model, corrupt, ruleset="relp", target=1, reference=clean, at=["0"])
    effect = (model(clean) - model(corrupt))[:, 1]
    assert torch.allclose(by_sample(scores.relevance), effect)
    assert torch.allclose(by_sample(scores.at["0"]), effect)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_places_on_a_path_integrate_polynomials(count: int) -> None:
    places = gauss_legendre(count)
    for power in range(2 * count):
        assert abs(sum(w * t**power for t, w in places) - 1 / (power + 1)) < 1e-13
    assert abs(sum(w * t ** (2 * count) for t, w in places) - 1 / (2 * count + 1)) > 1e-13


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_integrated_gradients_are_complete_as_steps_grow(name: str) -> None:
    """sum (x - x_ref) mean g tends to f(x) - f(x_ref); twice the steps tell how far it still is."""
    lrp = converted(name)
    sums = []
    for steps in (8, 16, 32):
        rules = fxlrp.ruleset("integrated-gradients").override(readout={"steps": steps})
        result = lrp.with_ruleset(rules).attribute(inputs(name), target=1, reference=other(name))
        sums.append(by_sample(result.relevance))
    for coarse, fine in pairwise(sums):
        halved = (coarse - fine).abs().max()
        assert (coarse - result.explained).abs().max() <= 1.5 * halved + 1e-12
    assert (sums[-1] - result.explained).abs().max() < 1e-4
    ends = [lrp.model(**given).logits for given in (inputs(name), other(name))]
    wanted = [(e[:, -1, 1] if e.ndim == 3 else e[:, 1]).detach() for e in ends]
    assert torch.allclose(result.explained, wanted[0] - wanted[1])


def test_any_ruleset_can_be_integrated() -> None:
    """With one step at the middle it is the message there; in relevance, what the gradient message gives."""
    found = []
    for message in ("gradient", "relevance"):
        rules = fxlrp.ruleset("attnlrp").override(message=message, readout={"kind": "integrated", "steps": 1})
        found.append(converted("bert").with_ruleset(rules).attribute(inputs("bert"), target=1).features)
    assert relative(found[1], found[0]) < 1e-9
    embedded = converted("bert").model.get_input_embeddings().weight[inputs("bert")["input_ids"]].detach()
    half = fxlrp.attribute(converted("bert").model, {"inputs_embeds": 0.5 * embedded}, ruleset="attnlrp", target=1)
    assert relative(found[0], 2 * half.features) < 1e-9


def smooth(model: nn.Module, x: Tensor, **reading: Any) -> Tensor:
    rules = fxlrp.ruleset("smoothgrad").override(readout=reading)
    return fxlrp.attribute(model, x, ruleset=rules, target=1).relevance


def test_smoothed_gradients_are_the_mean_over_noisy_inputs() -> None:
    class Cubes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum(1), (x**3).sum(1)], 1)

    model, x = Cubes().eval(), torch.tensor([[1.0, -2.0, 0.5], [10.0, 30.0, 20.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    spread = 0.1 * (x.amax(1, keepdim=True) - x.amin(1, keepdim=True))
    noisy = [x + spread * torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(5)]
    expected = torch.stack([3 * n**2 for n in noisy]).mean(0)
    assert torch.allclose(smooth(model, x, samples=5, sigma=0.1, seed=4), expected)
    expected = torch.stack([3 * n**3 for n in noisy]).mean(0)
    assert torch.allclose(smooth(model, x, samples=5, sigma=0.1, seed=4, score="relevance"), expected)
    assert torch.allclose(smooth(model, x, sigma=0.0), 3 * x**2)
    assert not torch.allclose(smooth(model, x, samples=5, sigma=0.1, seed=5), smooth(model, x, sigma=0.0))


def test_noise_without_strength_changes_nothing_for_ids() -> None:
    rules = fxlrp.ruleset("attnlrp").override(readout={"kind": "smooth", "sigma": 0.0, "samples": 2})
    at = ["bert.encoder.layer.0"]
    lrp = converted("bert").with_ruleset(rules)
    still = lrp.attribute(inputs("bert"), target=1, at=at)
    plain = lrp.with_ruleset("attnlrp").attribute(inputs("bert"), target=1, at=at)
    assert relative(still.features, plain.features) < 1e-12
    assert relative(still.at[at[0]], plain.at[at[0]]) < 1e-12
    moved = lrp.with_ruleset(rules.override(readout={"sigma": 0.1})).attribute(inputs("bert"), target=1)
    assert relative(moved.features, plain.features) > 1e-3


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "patching without a reference": ("relp", {}, "pass the inputs of that run as reference="),
    "a reference for nothing": ("attnlrp", {"reference": other("bert")}, "compares with no reference"),
    "another length": (
        "relp",
        {"reference": torch.zeros(2, 4, dtype=torch.long)},
        r"shape \(2, 4\), the input \(2, 6\)",
    ),
    "another type": (
        "deeplift-rescale",
        {"reference": torch.zeros(2, 6)},
        "torch.int64 as the input is, not torch.float",
    ),
    "an unknown name": ("relp", {"reference": {"attention_mask": torch.ones(2, 6)}}, "that the inputs do not have"),
    "no input at all": ("relp", {"reference": {"input_idz": torch.ones(2, 6)}}, "has no input 'input_idz'"),
    "an account of differences": ("deeplift-rescale", {"ledger": True}, "sum.. == result.explained"),
    "an account of a mean": ("smoothgrad", {"ledger": True}, "Override readout"),
    "a path of modules": ("integrated-gradients", {"at": ["bert.pooler"]}, "says nothing of modules"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    rules, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        converted("bert").with_ruleset(rules).attribute(inputs("bert"), target=1, **options)


def test_a_model_that_decides_by_values_decides_alike_on_the_reference() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(x)
            return y if float(x.sum()) > 0 else 2 * y

    model = Decides().double().eval()
    x = torch.ones(1, 3, dtype=torch.float64)
    lrp = fxlrp.convert(model, "relp")
    with pytest.warns(fxlrp.RetraceWarning), pytest.raises(InputError, match="takes another branch on the reference"):
        lrp.attribute(x, target=1, reference=-x)


def test_a_comparison_hands_the_reference_to_those_that_compare() -> None:
    model, x = small("mlp")
    found = fxlrp.compare(model, x, ["epsilon", "deeplift-rescale"], target=1, reference=x.flip(0))
    wanted = fxlrp.attribute(model, x, ruleset="deeplift-rescale", target=1, reference=x.flip(0))
    assert torch.equal(found["deeplift-rescale"].relevance, wanted.relevance)
