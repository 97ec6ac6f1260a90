"""DeepLIFT's rescale rule: exact, bounded, and the derivative where differences are rounding."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import RelevanceWarning

WIDE = torch.float64


def contributions(model: nn.Module, x: Tensor, reference: Tensor | None = None, target: int = 0) -> Tensor:
    given = {} if reference is None else {"reference": reference}
    return fxlrp.convert(model.eval(), "deeplift-rescale").attribute(x, target=target, **given).relevance


def test_softmax_by_hand() -> None:
    """M = diag(L) - L L^T / sum L with the logarithmic means L of both ends' probabilities, times x - 0."""
    x = torch.tensor([10.0, 9.0, 8.0], dtype=WIDE)
    s, s_ref = x.softmax(-1), torch.full((3,), 1 / 3, dtype=WIDE)
    means = (s - s_ref) / (s.log() - s_ref.log())
    expected = (torch.diag(means) - torch.outer(means, means) / means.sum())[0] * x
    assert torch.allclose(contributions(nn.Softmax(-1), x[None])[0], expected)
    assert torch.allclose(expected, torch.tensor([2.3822, -1.3008, -0.7495], dtype=WIDE), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
def test_a_shift_of_all_logits_changes_no_message(shift: float, dtype: torch.dtype) -> None:
    """Contributions are messages times differences: with shifts of both ends alike they are the same."""
    x = torch.tensor([[2.0, 1.0, -1.0]], dtype=dtype)
    reference = torch.tensor([[0.5, 0.0, 1.0]], dtype=dtype)
    found = contributions(nn.Softmax(-1), x + shift, reference + shift)
    assert torch.allclose(found, contributions(nn.Softmax(-1), x, reference), atol=1e-4 if dtype != WIDE else 1e-12)
    assert torch.allclose(found.sum(-1), (x.softmax(-1) - reference.softmax(-1))[:, 0], atol=1e-5)


def test_masked_entries_receive_nothing_and_change_nothing() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(x.masked_fill(torch.tensor([False, False, True]), float("-inf")), -1)

    x = torch.tensor([[2.0, 1.0, 7.0]], dtype=WIDE)
    found = contributions(Masked(), x)[0]
    assert torch.allclose(found[:2], contributions(nn.Softmax(-1), x[:, :2])[0])
    assert found[2] == 0


NETWORKS = {
    "softmax": lambda: nn.Softmax(-1),
    "gelu": lambda: nn.GELU(),
    "sigmoid": lambda: nn.Sigmoid(),
    "softplus": lambda: nn.Softplus(),
    "layer norm": lambda: nn.LayerNorm(3, dtype=WIDE),
    "rms norm": lambda: nn.RMSNorm(3, dtype=WIDE),
    "log-softmax": lambda: nn.LogSoftmax(-1),
}


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_tends_to_the_derivative(name: str, step: float) -> None:
    model = NETWORKS[name]().eval()
    x, direction = (torch.tensor([v], dtype=WIDE) for v in ((0.3, -0.2, 0.9), (1.0, 0.5, -0.25)))
    moved = x + step * direction
    taken = torch.autograd.functional.jacobian(lambda v: model(v)[0, 0], x) * (moved - x)
    found = contributions(model, moved, x)
    assert torch.allclose(found, taken, rtol=2 * step + 1e-6, atol=10 * step**2 + 1e-22)


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_of_a_reference_of_zeros_passes_on_no_more_than_it_gets(
    norm: type[nn.Module], dtype: torch.dtype
) -> None:
    """Its scale is 1 / sqrt(eps) there: half of that at the midpoint made each norm multiply relevance by hundreds."""
    torch.manual_seed(0)
    layers = [module for _ in range(6) for module in (norm(8, eps=1e-6), nn.Linear(8, 8))]
    model = nn.Sequential(*layers).to(dtype)
    x = torch.randn(2, 8).to(dtype)
    found = contributions(model, x)
    change = (model(x) - model(torch.zeros_like(x)))[:, 0].detach()
    assert torch.allclose(found.sum(-1), change, atol=1e-4 if dtype != WIDE else 1e-10)
    assert found.abs().max() < 50 * change.abs().max()


def grown(model: nn.Module) -> nn.Module:
    """Weights six times those of an untrained model, so that attention and activations are far from linear."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(6.0 if weight.ndim == 2 and "embed" not in name else 1.0)
    return model.eval()


SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


@pytest.mark.parametrize("layers", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 6])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_contributions_of_a_transformer_add_up_and_stay_bounded(family: str, layers: int) -> None:
    """What a layer loses would grow with depth: a plain run has the ends, `make slow` what lies between."""
    torch.manual_seed(0)
    if family == "llama":
        config = transformers.LlamaConfig(num_hidden_layers=layers, num_key_value_heads=1, **SIZES)
        model = grown(transformers.LlamaForCausalLM(config))
    else:
        model = grown(
            transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=layers, **SIZES))
        )
    ids = torch.tensor([[3, 7, 5, 11, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RelevanceWarning)
        result = fxlrp.convert(model, "deeplift-rescale").attribute({"input_ids": ids}, target=1)
    assert torch.allclose(result.relevance.sum(-1), result.explained, atol=2e-5)
    assert result.relevance.abs().max() < 100 * max(float(result.explained.abs()), 0.01)


def test_contributions_that_do_not_add_up_are_said() -> None:
    """A count that scales, which is no float and so not explained, is another on the reference."""

    class Counted(nn.Module):
        def forward(self, x: Tensor, count: Tensor) -> Tensor:
            return x * count

    x, count = torch.ones(1, 2, dtype=WIDE), torch.tensor([[3, 4]])
    lrp = fxlrp.convert(Counted().eval(), "deeplift-rescale")
    with pytest.warns(RelevanceWarning, match="do not add up"):
        lrp.attribute({"x": x, "count": count}, target=0, reference={"x": 0.5 * x, "count": count - 1})
