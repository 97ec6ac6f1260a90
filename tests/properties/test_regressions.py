"""Counter-examples that were found once, each with the fault it showed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxlrp
from fxlrp.testing import RandomGraph, at_inputs, check_conservation, largest_difference, propagate, spellings

FOUND = {
    # every way from y to the output is cut: y was a leaf of the backward pass and received a message through
    # the cut gate
    "input cut off behind a gate": ("cp-lrp", "v1 = gate(x, y)"),
    "queries cut off in cross attention": ("conservative", "v1 = cross_attention(x, y)"),
    # all rules together make the output a constant: the explained value had no entry
    "output held constant": ("conservative", "v1 = softmax_features(x)"),
    "output held constant, probability": ("libragrad", "v1 = softmax_features(x)"),
    # the two halves of a gate were taken for one value, and a * sigmoid(b) for a SiLU
    "halves of a gate": ("conservative", "v1 = glu(x)"),
    # one of several values of a split is cut off while another carries on
    "split with one output cut off": ("cp-lrp", "v1 = chunk_product(x)\nv2 = attention_fused_qkv(v1)"),
    # a recording has the transform's own operators, which had no class
    "transform in a recording": ("ali2022", "v1 = fourier(x)\nv2 = checked(v1)"),
    # the leak of an operation with complex values was y g instead of Re(y conj(g)), and so was its oracle
    "complex numbers made of values": ("conservative", "v1 = polar(x)"),
    # bounds were compared with infinity, which a value in a graph cannot be
    "bounds that are values": ("conservative", "v1 = clamp_between_values(x)"),
    # a batch norm has another name where it was recorded
    "batch norm in a recording": ("attnlrp", "v1 = checked(x)"),
    # a skip connection began at all values of an operation, of which it adds one, and at a complex number
    "skip connection from one of several values": ("chefer2021-vit", "v1 = sort_features(x)\nv2 = residual(v1)"),
    "skip connection from complex numbers": ("chefer2021-vit", "v1 = rotary_complex(x)\nv2 = residual(v1)"),
}


@pytest.mark.filterwarnings("ignore:.*cannot be exported:fxlrp.RetraceWarning")
@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    ruleset, code = FOUND[name]
    graph = RandomGraph.parse(code)
    inputs = graph.inputs()
    check_conservation(graph.module(), ruleset, inputs, target=1).raise_if_failed()
    lrp = fxlrp.convert(graph.module(), at_inputs(ruleset))
    found = lrp.attribute(inputs, target=1).inputs
    assert largest_difference(found, propagate(lrp, inputs, 1)) < 1e-9


def test_float32_entries_that_cancel_are_as_exact_as_they_are_large() -> None:
    """A logit of 1.8e-3 is a sum of entries of 5.7e-2 that were rounded to float32: its gap of 3e-8 is rounding."""
    graph = RandomGraph.parse("v1 = cast_float32(y)\nv2 = cast_float32(y)\nreturn head((x + v1 + v2).mean(1))")
    report = check_conservation(graph.module(), "ali2022", graph.inputs(), target=1)
    assert report.ledger.gap.abs().max() < torch.finfo(torch.float32).eps
    report.raise_if_failed()


def test_what_is_cut_off_receives_nothing() -> None:
    graph = RandomGraph.parse("v1 = gate(x, y)")
    found = fxlrp.convert(graph.module(), "cp-lrp").attribute(graph.inputs(), target=1).inputs
    assert torch.equal(found["y"], torch.zeros_like(found["y"]))
    assert found["x"].abs().max() > 0.1


def test_infinite_mask() -> None:
    """A mask of -inf is added: its message is zero, and its entry is zero, not NaN."""
    pair = next(pair for pair in spellings() if pair.name == "causal_filled_added")
    check_conservation(pair.second, "attnlrp", pair.inputs, target=1).raise_if_failed()


class Computed(nn.Module):
    """A linear layer, a function, and a head.  x: [batch, 5, 8]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.norm, self.head = nn.Linear(8, 8), function, nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.function(self.first(x)))).mean(1)


def _spelled(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def _masked(x: Tensor) -> Tensor:
    return x.masked_fill(torch.arange(8) % 3 == 0, -torch.inf)


#: What the census of all architectures found.
BY_CENSUS: dict[str, Callable[[Tensor], Tensor]] = {
    # the offset f(0) was booked where the entry of the mask is none, and infinity times zero was NaN
    "exp of -inf": lambda x: _masked(x).exp(),
    "sigmoid of -inf": lambda x: x * torch.sigmoid(_masked(x)),
    # the fused norm still named the activation's own last operator, which folding had removed
    "spelled activation before a norm": _spelled,
    # the axis was taken for an additive constant
    "maximum along an axis": lambda x: x - x.max(2, keepdim=True)[0] + x.min(-1, keepdim=True).values,
    # of two bounds one became a leaf of the ledger and the other stayed a number
    "clamp up to infinity": lambda x: x * x.clamp(0.1, torch.inf),
    "clamp from zero": lambda x: x * x.clamp(0, 0.8),
    # the filling of an integer tensor was made a float
    "integers padded": lambda x: x * F.pad(torch.arange(4), (0, 4), value=2),
    "in-place and": lambda x: x * ((x > 0) & (x < 1)).to(x.dtype).logical_not(),
}


@pytest.mark.parametrize("rules", ["conservative", "attnlrp", "ali2022", "gradient"])
@pytest.mark.parametrize("name", BY_CENSUS)
def test_found_by_the_census(name: str, rules: str) -> None:
    model = Computed(BY_CENSUS[name]).double().eval()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check_conservation(model, rules, x, target=1).raise_if_failed()


def test_padding_of_free_size_by_a_constant() -> None:
    """constant_pad_nd takes no free sizes; pad does."""

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, 8 - x.shape[1] % 8), value=0.5).sum(1)

    lrp = fxlrp.convert(Padded().eval(), "conservative")
    for length in (5, 11):
        check_conservation(lrp, "conservative", torch.randn(2, length, 3).double()).raise_if_failed()


def test_an_exporter_that_takes_another_branch_is_found_out() -> None:
    class Otherwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if torch.compiler.is_exporting() else self.layer(-x)

    model, x = Otherwise().double().eval(), torch.randn(2, 3).double()
    with pytest.warns(fxlrp.RetraceWarning, match="decides otherwise"):
        lrp = fxlrp.convert(model, "conservative", example_inputs=x)
    check_conservation(lrp, "conservative", x).raise_if_failed()


def test_a_sliding_cache_is_the_models_own() -> None:
    from tests.support.zoo import ZOO

    model = ZOO["mistral"].build()
    inputs = ZOO["mistral"].inputs(padding=None)
    with torch.no_grad():
        expected = model(**inputs).past_key_values
        found = fxlrp.convert(model, "attnlrp")(**inputs).past_key_values
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
