"""Layers that libraries of quantisation packed: the relevance of the model with its weights dequantised."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def _torchao(name: str, **options: Any) -> Callable[[nn.Sequential], nn.Sequential]:
    def quantised(model: nn.Sequential) -> nn.Sequential:
        torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make loaded")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchao.quantize_(model, getattr(torchao, name)(**options))
        return model

    return quantised


def _bitsandbytes(name: str, **options: Any) -> Callable[[nn.Sequential], nn.Sequential]:
    def quantised(model: nn.Sequential) -> nn.Sequential:
        library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[dev]'")
        for place, layer in enumerate(model):
            if isinstance(layer, nn.Linear):
                made = getattr(library.nn, name)(layer.in_features, layer.out_features, bias=True, **options)
                made.load_state_dict(layer.state_dict())
                model[place] = made.to("cpu")
        return model.eval()

    return quantised


KINDS: dict[str, Callable[[nn.Sequential], nn.Sequential]] = {
    "torchao, 8 bits": _torchao("Int8WeightOnlyConfig"),
    "torchao, 8 bits, inputs too": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao, 4 bits": _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "torchao, 4 bits, inputs too": _torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype=torch.int4),
    "torchao, floats of 8 bits": _torchao("Float8WeightOnlyConfig"),
    "bitsandbytes, 8 bits": _bitsandbytes("Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes, 4 bits": _bitsandbytes("Linear4bit", quant_type="nf4", compute_dtype=torch.float32),
}
ROUND_INPUTS = ("torchao, 8 bits, inputs too", "torchao, 4 bits, inputs too", "bitsandbytes, 8 bits")


def _matrix(layer: nn.Module) -> Tensor:
    """What a packed layer multiplies with, by the library's own words."""
    weight: Any = layer.weight
    if hasattr(type(weight), "dequantize") and weight.is_floating_point():
        return weight.dequantize()  # type: ignore[no-any-return]
    functional: Any = pytest.importorskip("bitsandbytes").functional
    if getattr(weight, "quant_state", None) is not None:
        return functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]
    state: Any = layer.state
    whole, scale = (state.CB, state.SCB) if state.CB is not None else (weight.CB, weight.SCB)
    return functional.int8_vectorwise_dequant(whole, scale)  # type: ignore[no-any-return]


def _dequantised(model: nn.Sequential) -> nn.Sequential:
    made = _model()
    for own, packed in zip(made, model, strict=True):
        if isinstance(own, nn.Linear):
            own.weight = nn.Parameter(_matrix(packed).detach().float(), requires_grad=False)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_relevance_is_that_of_the_dequantised_weights(kind: str) -> None:
    model = KINDS[kind](_model())
    plain = _dequantised(model)
    assert not torch.allclose(plain[0].weight, _model()[0].weight, atol=1e-4)  # it is quantised
    for ruleset in ("epsilon", "attnlrp", "epsilon-plus"):
        expected = fxlrp.convert(plain, ruleset).attribute(X, target=1).relevance
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = fxlrp.convert(model, ruleset).attribute(X, target=1, ledger=True)
        torch.testing.assert_close(found.relevance, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert found.ledger is not None
        assert float(found.ledger.gap.abs().max()) < 1e-4
        rounds = any("round what they are multiplied with" in str(each.message) for each in told)
        assert rounds == (kind in ROUND_INPUTS)


def test_a_copy_keeps_its_packed_weights() -> None:
    model = KINDS["torchao, 8 bits"](_model())
    before = {name: type(each) for name, each in model.named_parameters()}
    fxlrp.convert(model, "epsilon").attribute(X, target=1)
    assert {name: type(each) for name, each in copy.copy(model).named_parameters()} == before
