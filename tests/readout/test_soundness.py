"""A result is finite, not all held, not blown up; or the user is told, with the place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import InputError, NotFiniteError, RelevanceWarning


class Read(nn.Module):
    """Logits of a linear layer, read out by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.logits(x))


def built(function: Callable[[Tensor], Tensor]) -> tuple[Read, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Read(function).eval().double(), torch.randn(2, 4, dtype=torch.float64)


READ_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: F.softmax(z, -1),
    "twice": lambda z: F.softmax(2 * F.softmax(z, -1), -1),
    "cut": lambda z: F.softmax(z, -1)[:, :2],
    "log of a probability": lambda z: F.softmax(z, -1).log(),
    "log": lambda z: (z.square() + 2).log(),
    "reciprocal": lambda z: 1 / (z.square() + 2),
    "root": lambda z: (z.square() + 2).rsqrt(),
    "power": lambda z: (z.square() + 2) ** -0.5,
    "logit": lambda z: torch.logit(0.1 + 0.5 * torch.sigmoid(z)),
}


@pytest.mark.parametrize("rules", ["conservative", "epsilon", "cp-lrp", "libragrad", "epsilon-plus"])
@pytest.mark.parametrize("end", ["softmax", "twice", "cut", "log of a probability"])
def test_the_relevance_of_a_probability_is_that_of_its_logit(rules: str, end: str) -> None:
    """By hand: R_j = w_cj x_j / z_c times what relevance began as, for the target's row w_c of the layer."""
    model, x = built(READ_OUT[end])
    lrp = fxlrp.convert(model, fxlrp.ruleset(rules).override(fields={"seed": "one"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelevanceWarning)
        result = lrp.attribute(x, target=1)
    z = model.logits(x)[:, 1:2]
    assert torch.allclose(result.relevance, (model.logits.weight[1] * x / z).detach(), rtol=1e-3)


@pytest.mark.parametrize("rules", ["conservative", "epsilon", "attnlrp"])
@pytest.mark.parametrize("end", ["log", "reciprocal", "root", "power", "logit"])
def test_functions_without_a_value_at_zero_hand_relevance_on(rules: str, end: str) -> None:
    model, x = built(READ_OUT[end])
    result = fxlrp.convert(model, rules).attribute(x, target=1, ledger=True)
    assert (result.relevance != 0).all()
    assert result.ledger is not None
    assert (result.ledger.gap.abs() < 1e-12).all()


def test_a_reciprocal_that_divides_is_a_constant_scale_as_a_denominator_is() -> None:
    divided, x = built(lambda z: z / z.square().mean(-1, keepdim=True))
    spelled, _ = built(lambda z: z * (1 / z.square().mean(-1, keepdim=True)))
    found = [fxlrp.convert(model, "conservative").attribute(x, target=1).relevance for model in (divided, spelled)]
    assert torch.allclose(found[0], found[1])


def test_attention_weights_that_are_returned_as_well_are_no_prediction() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weights = F.softmax(x @ x.mT, -1)
            return (weights @ x).sum(-1), weights

    lrp = fxlrp.convert(Attention().eval(), "conservative", example_inputs=torch.randn(2, 3, 4))
    assert [row.rule for row in lrp.plan.rows if row.pattern in ("softmax", "prediction")] == ["constant"]


@pytest.mark.parametrize("held", ["softmax", "prediction"])
def test_relevance_that_is_all_held_is_said_with_rule_and_place(held: str) -> None:
    model, x = built(READ_OUT["softmax"])
    rules = fxlrp.ruleset("conservative").override(rules={held: "constant"})
    with pytest.warns(RelevanceWarning, match=r"is zero .* rule 'constant' in .*test_soundness.py:\d+"):
        fxlrp.convert(model, rules).attribute(x, target=1)


def test_a_message_that_is_lost_on_its_way_is_said_with_its_place() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    nn.init.constant_(model[0].bias, -100.0)
    with pytest.warns(RelevanceWarning, match="held by rule 'gradient' in module '1'"):
        fxlrp.convert(model, "gradient-x-input").attribute(torch.rand(2, 4), target=1)


def test_a_small_relevance_beside_a_zero_output_is_no_reason_to_warn() -> None:
    model = nn.Linear(4, 3, bias=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxlrp.convert(model, "epsilon").attribute(torch.zeros(2, 4), target=1)


def test_nan_of_the_model_is_an_error_that_names_the_operation() -> None:
    model, x = built(lambda z: (z - 100).log())
    with pytest.raises(NotFiniteError, match=r"NaN first appears in 'log.*test_soundness.py:\d+"):
        fxlrp.convert(model, "epsilon").attribute(x, target=1)


def test_nan_of_a_rule_is_an_error_that_names_rule_and_module() -> None:
    """0 / 0, where the rule is asked for no stabiliser."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LogSoftmax(-1)).eval()
    rules = fxlrp.ruleset("wu-ong2020-jacobian").override(
        rules={"general": {"rule": "jacobian_shares", "epsilon": 0.0}}
    )
    nn.init.zeros_(model[0].weight)
    with pytest.raises(NotFiniteError, match="under rule 'jacobian_shares' in module '1'"):
        fxlrp.convert(model, rules).attribute(torch.ones(1, 2), target=1)


@pytest.mark.parametrize("layout", ["sparse", "nested"])
def test_tensors_that_are_not_dense_are_refused_with_a_remedy(layout: str) -> None:
    dense = torch.eye(4)
    given = dense.to_sparse() if layout == "sparse" else torch.nested.nested_tensor([dense[0], dense[1]])
    with pytest.raises(InputError, match=f"{layout} tensor.*to_dense"):
        fxlrp.convert(nn.Linear(4, 2).eval(), "epsilon").attribute(given, target=1)


@pytest.mark.parametrize("given", [float("inf"), 1e38, -1e38])
def test_inputs_out_of_range_are_named(given: float) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    x = torch.ones(2, 4)
    x[0, 0] = given
    with pytest.raises(InputError, match=r"Input 'input' holds (inf|-?1e\+38)"):
        fxlrp.convert(model, "epsilon").attribute(x, target=1)


def test_a_blow_up_is_said() -> None:
    """Two contributions of 1000 and -999.999: the larger is a million times their sum."""
    model = nn.Linear(2, 2, bias=False).eval().double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1000.0, -999.999], [1.0, 1.0]], dtype=torch.float64))
    lrp, x = fxlrp.convert(model, "epsilon"), torch.ones(1, 2, dtype=torch.float64)
    with pytest.warns(RelevanceWarning, match=r"1e\+06 times the explained value"):
        lrp.attribute(x, target=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrp.attribute(x, target=1)


@cache
def held_in(dtype: torch.dtype, computed: torch.dtype) -> tuple[fxlrp.ConvertedModel, Tensor]:
    """A model and an input whose numbers ``dtype`` holds, in the type in which they are computed; converted once for
    all rulesets.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8))
        model = nn.Sequential(model, nn.GELU(), nn.Linear(8, 2)).eval().to(dtype).to(computed)
        return fxlrp.convert(model, "gradient"), torch.randn(1, 1, 5, 5).to(dtype).to(computed)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rules", fxlrp.rulesets())
def test_half_precision_gives_the_numbers_of_the_same_weights_in_float32(rules: str, dtype: torch.dtype) -> None:
    """Convolution, norm and head: messages and denominators are float32's, whatever the weights are held in."""
    if fxlrp.ruleset(rules).readout.of_attention or fxlrp.ruleset(rules).readout.of_tokens or rules == "relp":
        pytest.skip("reads what this model does not have")
    lrp, x = held_in(dtype, dtype)
    found = lrp.with_ruleset(rules).attribute(x, target=1)
    assert found.outputs.dtype is dtype
    assert torch.equal(found.outputs, lrp.model(x).detach())
    lrp, x = held_in(dtype, torch.float32)
    wide = lrp.with_ruleset(rules).attribute(x, target=1).relevance
    assert torch.allclose(found.relevance, wide, rtol=1e-5, atol=1e-6 * float(wide.abs().max()))
    if not rules.startswith("wu-ong2020"):  # whose denominators are signed sums: not even float32 gives its numbers
        lrp, x = held_in(dtype, torch.float64)
        exact = lrp.with_ruleset(rules).attribute(x, target=1).relevance
        assert (wide.double() - exact).abs().max() < 1e-4 * exact.abs().max()


def test_a_half_precision_conversion_called_like_the_model_gives_its_outputs_and_sends_relevance_back() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval().half()
    x = torch.randn(2, 4).half().requires_grad_()
    lrp = fxlrp.convert(model, "epsilon")
    outputs = lrp(x)
    assert torch.equal(outputs, model(x))
    outputs[:, 1].sum().backward()
    assert x.grad is not None
    expected = lrp.attribute(x.detach(), target=1).relevance
    assert torch.allclose((x * x.grad).float(), expected, atol=2e-3 * float(expected.abs().max()))


def test_half_precision_is_planned_as_float32_is() -> None:
    """Casts of norms and their like are gone, so that rules that look at several operations see the same ones."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForSequenceClassification(config).eval().half()
    given = {"input_ids": torch.tensor([[3, 7, 5]])}
    both = [fxlrp.convert(m, "gradient", example_inputs=given) for m in (model, copy.deepcopy(model).float())]
    for rules in ("wu-ong2020", "attnlrp"):
        found = [lrp.with_ruleset(rules) for lrp in both]
        assert str(found[0].plan) == str(found[1].plan)
        results = [lrp.attribute(given, target=1).relevance for lrp in found]
        assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_added_before_a_norm_is_the_same_in_half_precision(dtype: torch.dtype) -> None:
    """A position embedding, which a norm follows, stays one where the norm's casts are gone."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        narrow = transformers.BertForSequenceClassification(config).eval().to(dtype)
    given, wide = {"input_ids": torch.tensor([[3, 7, 5, 9]])}, copy.deepcopy(narrow).double()
    for rules, ledger in (("pa-lrp", False), ("attnlrp", True)):
        found, exact = (fxlrp.convert(m, rules).attribute(given, target=1, ledger=ledger) for m in (narrow, wide))
        assert torch.allclose(found.relevance.double(), exact.relevance, atol=1e-4 * float(exact.relevance.abs().max()))
        if found.ledger is not None and exact.ledger is not None:
            kinds = found.ledger.by_kind()
            assert "position embedding" in kinds
            for kind, amount in exact.ledger.by_kind().items():
                assert torch.allclose(kinds[kind], amount, atol=1e-4 * float(exact.explained.abs().max() + 1))


class Normalised(nn.Module):
    """Logits of the mean over tokens of a function of their normalised embeddings: sum_d x_d dy/dx_d is 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(9, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.embed(ids))).mean(1))  # type: ignore[no-any-return]


SUMMED = fxlrp.ruleset("smoothgrad").override(readout={"reduce": "sum", "samples": 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_that_cancel_to_rounding_are_said_and_lengths_are_not(dtype: torch.dtype) -> None:
    """A derivative behind a LayerNorm sums to zero over the features that are normalised: what is left is noise."""
    with torch.random.fork_rng(devices=[]):
        model = Normalised().eval().to(dtype)
    ids = torch.tensor([[3, 7, 5], [1, 2, 8]])
    for rules in (SUMMED, fxlrp.ruleset("guided-backprop").override(readout={"kind": "input", "reduce": "sum"})):
        with pytest.warns(RelevanceWarning, match="rounding alone.*'reduce': 'norm'"):
            fxlrp.convert(model, rules).attribute(ids, target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("smoothgrad", "guided-backprop", "deconvnet"):
            fxlrp.convert(model, name).attribute(ids, target=1)
