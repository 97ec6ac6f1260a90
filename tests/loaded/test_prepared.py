"""Models that were prepared before they are explained: the relevance of what they compute, however it is held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import fxlrp
from tests.support.small_models import grouped_llama

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
IDS = torch.tensor([[3, 9, 27, 5, 14, 2], [5, 5, 1, 30, 8, 3]])
RULESETS = ("epsilon", "attnlrp", "epsilon-plus", "gradient")


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)).double().eval()


def _relevance(lrp: fxlrp.ConvertedModel, inputs: Any, target: int = 1) -> Tensor:
    result = lrp.attribute(inputs, target=target, ledger=True)
    assert result.ledger is not None
    assert float(result.ledger.gap.abs().max()) < 1e-5 * float(result.explained.abs().max())
    return result.relevance


def _on_each(prepare: Callable[[nn.Linear], Any]) -> Callable[[nn.Sequential], None]:
    return lambda model: [prepare(layer) for layer in model if isinstance(layer, nn.Linear)] and None


PARAMETRISED: dict[str, Callable[[nn.Sequential], None]] = {
    "weight norm": _on_each(parametrizations.weight_norm),
    "spectral norm": _on_each(parametrizations.spectral_norm),
    "orthogonal": _on_each(parametrizations.orthogonal),
    "weight norm, by hooks": _on_each(weight_norm),
    "spectral norm, by hooks": _on_each(spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_parametrised_weights_are_the_weights_that_they_make(kind: str) -> None:
    model = _net()
    PARAMETRISED[kind](model)
    model.double().eval()
    plain = _net()
    with torch.no_grad():
        model(X)  # those by hooks make their weights in a call
        for own, made in zip(plain, model, strict=True):
            if isinstance(own, nn.Linear):
                own.weight.copy_(made.weight)
    assert not torch.allclose(plain[0].weight, _net()[0].weight) or kind.startswith("weight")
    found, expected = fxlrp.convert(model, "epsilon"), fxlrp.convert(plain, "epsilon")
    for ruleset in RULESETS:
        torch.testing.assert_close(
            _relevance(found.with_ruleset(ruleset), X), _relevance(expected.with_ruleset(ruleset), X)
        )
    if kind in ("weight norm", "spectral norm"):  # what is taken off later leaves the weights as they were
        for layer in model:
            if isinstance(layer, nn.Linear):
                parametrize.remove_parametrizations(layer, "weight")
        with pytest.warns(fxlrp.RetraceWarning, match="has changed"):
            torch.testing.assert_close(_relevance(found, X), _relevance(expected, X))


def test_tied_weights_take_part_at_both_ends() -> None:
    tied, apart = grouped_llama(tie_word_embeddings=True).double(), grouped_llama(tie_word_embeddings=False).double()
    apart.load_state_dict(tied.state_dict())
    with torch.no_grad():
        apart.lm_head.weight.copy_(tied.model.embed_tokens.weight)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    found, expected = fxlrp.convert(tied, "attnlrp"), fxlrp.convert(apart, "attnlrp")
    for ruleset in RULESETS[:2]:
        torch.testing.assert_close(
            _relevance(found.with_ruleset(ruleset), IDS, 7), _relevance(expected.with_ruleset(ruleset), IDS, 7)
        )


class Shifted(nn.Module):
    """A layer with what hooks do to it, in its own forward."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        y: Tensor = self.layer(x * 0.5)
        return y * 2 + y.sin()


def test_hooks_that_change_values_are_part_of_the_model() -> None:
    hooked, spelled = _net(), _net()
    hooked[2].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    hooked[2].register_forward_hook(lambda module, args, out: out * 2 + out.sin())
    spelled[2] = Shifted(spelled[2])
    found, expected = fxlrp.convert(hooked, "epsilon"), fxlrp.convert(spelled.eval(), "epsilon")
    plain = _relevance(fxlrp.convert(_net(), "epsilon"), X)
    for ruleset in RULESETS:
        same = _relevance(expected.with_ruleset(ruleset), X)
        torch.testing.assert_close(_relevance(found.with_ruleset(ruleset), X), same)
    assert not torch.allclose(_relevance(found, X), plain, rtol=0.01)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_is_switched_on_changes_nothing(reentrant: bool) -> None:
    plain, saving = grouped_llama().double(), grouped_llama().double()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found, expected = fxlrp.convert(saving, "attnlrp"), fxlrp.convert(plain, "attnlrp")
    for ruleset in RULESETS[:2]:
        torch.testing.assert_close(
            _relevance(found.with_ruleset(ruleset), IDS, 7), _relevance(expected.with_ruleset(ruleset), IDS, 7)
        )
    assert saving.is_gradient_checkpointing


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_half_precision_with_norms_in_float32_is_near_float64(narrow: torch.dtype) -> None:
    class Wide(nn.Module):
        """A norm in float32 within a model in half precision, as trainers leave it."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm.float()

        def forward(self, x: Tensor) -> Tensor:
            """As the norm, in the type of its input."""
            made: Tensor = self.norm(x.float())
            return made.to(x.dtype)

    torch.manual_seed(0)
    layers = (nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 3))
    mixed = nn.Sequential(*layers).to(narrow)
    exact = copy.deepcopy(mixed).double().eval()
    for place in (1, 4):
        mixed[place] = Wide(mixed[place])
    x = torch.randn(4, 16).to(narrow)
    for ruleset in ("attnlrp", "epsilon", "attnlrp-relevance"):
        found = fxlrp.convert(mixed.eval(), ruleset).attribute(x, target=1)
        expected = fxlrp.convert(exact, ruleset).attribute(x.double(), target=1).relevance
        # Messages are carried in float32, and so are the values: what is left is less than the type's own rounding.
        assert float((found.relevance.double() - expected).abs().max() / expected.abs().max()) < torch.finfo(narrow).eps
        assert mixed[0].weight.dtype == narrow
