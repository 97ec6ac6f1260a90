"""Quantised linear layers: the model's own values, relevance of the dequantised layer, a ledger that closes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the operators of quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
RULESETS = ("conservative", "attnlrp", "ali2022", "epsilon")
WIDTHS = (32, 64, 32)
GRID = (-128, 127, torch.int8)


class Int8(nn.Module):
    """A linear layer with an integer weight [out, in] and a scale for each output."""

    def __init__(self, layer: nn.Linear, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        dense = layer.weight.detach()
        scale = dense.abs().amax(1) / 127
        self.register_buffer("weight", (dense / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias, self.product = layer.bias, product

    def forward(self, x: Tensor) -> Tensor:
        """[batch, out]."""
        return self.product(x, self.weight, self.scale) + self.bias

    def dense(self) -> nn.Linear:
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.weight = nn.Parameter(self.weight * self.scale[:, None])
        layer.bias = self.bias
        return layer


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int64)


def _rounded_input(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    step, zero = decomposed.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
    whole = decomposed.quantize_per_tensor.tensor(x, step, zero, *GRID)
    return F.linear(decomposed.dequantize_per_tensor.tensor(whole, step, zero, *GRID), weight * scale[:, None])


def _rounded_tokens(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    step, zero = decomposed.choose_qparams_per_token_asymmetric(x, torch.int8)
    whole = decomposed.quantize_per_token(x, step, zero, *GRID)
    back = decomposed.dequantize_per_token(whole, step, zero, *GRID, torch.float32)
    return F.linear(back, decomposed.dequantize_per_channel(weight, scale, _zeros(scale), 0, *GRID))


def _fake(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    zeros = _zeros(scale).int()
    dense = torch.fake_quantize_per_channel_affine(weight * scale[:, None], scale, zeros, 0, -128, 127)
    return F.linear(torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127), dense)


#: Spellings of the product x (s W)^T, and whether they round x as well.
PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], bool]] = {
    "weight times scale": (lambda x, w, s: F.linear(x, w.to(x.dtype) * s[:, None]), False),
    "scale after the product": (lambda x, w, s: F.linear(x, w.to(x.dtype)) * s, False),
    "int8pack_mm": (lambda x, w, s: aten._weight_int8pack_mm(x, w, s), False),
    "dequantise": (
        lambda x, w, s: F.linear(x, decomposed.dequantize_per_channel(w, s, _zeros(s), 0, *GRID)),
        False,
    ),
    "input rounded": (_rounded_input, True),
    "tokens rounded": (_rounded_tokens, True),
    "fake quantisation": (_fake, True),
}


def build(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """The quantised model, the same in floating point, and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [Int8(nn.Linear(a, b), product) for a, b in pairwise(WIDTHS)]
        x = torch.randn(4, WIDTHS[0])
    plain = nn.Sequential(layers[0].dense(), nn.GELU(), layers[1].dense())
    return nn.Sequential(layers[0], nn.GELU(), layers[1]).eval(), plain.eval(), x


def check(model: nn.Module, x: Tensor, ruleset: str) -> fxlrp.Attribution:
    result = fxlrp.convert(model, ruleset).attribute(x, target=1, ledger=True)
    expected = model(x)
    assert (result.outputs - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert result.ledger is not None
    size = sum((entry.amount.abs() for entry in result.ledger.entries), torch.zeros(()))
    assert (result.ledger.gap.abs() <= 1e-6 * size).all()
    return result


@pytest.mark.parametrize("name", PRODUCTS)
def test_an_int8_layer_is_explained_as_the_dense_one(name: str) -> None:
    product, rounds = PRODUCTS[name]
    model, dense, x = build(product)
    for ruleset in RULESETS:
        result = check(model, x, ruleset)
        reference = fxlrp.convert(dense, ruleset).attribute(x, target=1).relevance
        error = float((result.relevance - reference).abs().max() / reference.abs().max())
        assert error < (0.05 if rounds else 1e-5), ruleset  # a step of 0.05 in the inputs, of rounding otherwise
        assert result.ledger is not None
        changed = result.ledger.by_kind().get("rounding")
        assert (changed is not None and changed.abs().max() > 1e-5) == rounds  # rounding has its own line


def test_rules_see_the_weights() -> None:
    """A rule that needs the weight's signs finds them, also in a packed product."""
    model, dense, x = build(PRODUCTS["int8pack_mm"][0])
    with torch.no_grad():
        for layer in (dense[0], dense[2]):  # the packed product has its bias outside
            layer.bias.zero_()
    rules = fxlrp.ruleset("conservative").override(linear={"rule": "gamma", "gamma": 0.25})
    found = fxlrp.convert(model, rules).attribute(x, target=1).relevance
    expected = fxlrp.convert(dense, rules).attribute(x, target=1).relevance
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


class Int4(nn.Module):
    """Four bits a weight in groups of 32, in the packed layout of this machine."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.whole = torch.randint(0, 16, (outer, inner), generator=rng, dtype=torch.int32)
        self.register_buffer("weight", aten._convert_weight_to_int4pack_for_cpu(self.whole, 1))
        self.register_buffer("grid", torch.rand(inner // 32, outer, 2, generator=rng) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, out]."""
        return aten._weight_int4pack_mm_for_cpu(x, self.weight, 32, self.grid)


def test_an_int4_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LayerNorm(64), Int4(64, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
        x = torch.randn(4, 64)
    packed: Int4 = model[1]
    scale, zero = packed.grid.repeat_interleave(32, 0).unbind(-1)
    dense = nn.Linear(64, 32, bias=False)
    dense.weight = nn.Parameter(((packed.whole.T - 8) * scale + zero).T.contiguous())
    plain = nn.Sequential(model[0], dense, model[2], model[3]).eval()
    for ruleset in RULESETS:
        found = check(model, x, ruleset).relevance
        expected = fxlrp.convert(plain, ruleset).attribute(x, target=1).relevance
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_torch_ao_modules_are_refused_with_a_remedy() -> None:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    try:
        plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8).eval()
        with pytest.raises(fxlrp.CaptureError, match=r"torch\.ao.*integers with a scale"):
            fxlrp.convert(model).attribute(torch.randn(2, 4))
    finally:
        torch.backends.quantized.engine = engine
