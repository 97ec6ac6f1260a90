"""Metrics of captum over our relevance, by hand on linear models; and the signature that Quantus calls."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import CaptumInfidelity, CaptumSensitivity, adapters, quantus_explainer
from tests.evaluate.test_perturbation import IDS, Votes


class Linear(nn.Module):
    """Two classes on x [batch, 5], with an input that is given along: its rows scale the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(5, 2).double()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        logits = self.map(x)
        return logits if scale is None else logits * scale[:, None].round()


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
SCALE = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
pytest.importorskip("captum", reason="captum computes these metrics: pip install 'fxlrp[evaluate]'")


@pytest.fixture(scope="module")
def lrp() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Linear().eval(), "gradient")


def test_a_linear_model_is_without_infidelity(lrp: fxlrp.ConvertedModel) -> None:
    """f(x) - f(x') is sum of R_i (x_i - x'_i) / x_i there; half the relevance is wrong by half the difference."""
    found = CaptumInfidelity(samples=50, noise=0.5).run(lrp, [({"x": X, "scale": SCALE}, [0, 1, 0, 1])])
    assert found["infidelity"] < 1e-20
    assert found.protocol.better() == {"infidelity": -1}


def test_relevance_of_half_the_size_is_noticed(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute = fxlrp.ConvertedModel.attribute

    def halved(self: fxlrp.ConvertedModel, *args: object, **options: object) -> fxlrp.Attribution:
        result = attribute(self, *args, **options)
        result.relevance.mul_(0.5)
        return result

    monkeypatch.setattr(fxlrp.ConvertedModel, "attribute", halved)
    found = CaptumInfidelity(samples=4000, noise=0.5, of="label").run(lrp, [(X, [0, 1, 0, 1])])
    expected = (0.5 * 0.5) ** 2 * lrp.model.map.weight.square().sum(1)[[0, 1, 0, 1]]
    assert found.measured["infidelity"].tolist() == pytest.approx(expected.tolist(), rel=0.15)
    scaled = CaptumInfidelity(samples=50, noise=0.5, normalize=True).run(lrp, [(X, [0, 1, 0, 1])])
    assert scaled["infidelity"] < 1e-14  # rounding in float64: 2e-18 was measured
    with pytest.raises(AssertionError):
        test_a_linear_model_is_without_infidelity(lrp)


def test_sensitivity_by_hand(lrp: fxlrp.ConvertedModel) -> None:
    """R(x + u) - R(x) = w u: at most radius |w|, and nearly so with many draws."""
    found = CaptumSensitivity(samples=3000, radius=0.1, of="label").run(lrp, [({"x": X, "scale": SCALE}, [0, 1, 1, 0])])
    weight = lrp.model.map.weight.detach()[[0, 1, 1, 0]]
    most = 0.1 * weight.norm(dim=1) / (weight * X).norm(dim=1)
    ours = found.measured["sensitivity"]
    assert bool((ours <= most).all())
    assert bool((ours > 0.85 * most).all())


def test_targets_out_of_step_are_noticed(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = adapters.repeated

    def shuffled(explanation: object, value: Tensor) -> tuple[object, int]:
        inputs, repeats = repeated(explanation, value)
        return {**inputs, "x": value.roll(repeats, 0)}, repeats

    monkeypatch.setattr(adapters, "repeated", shuffled)
    with pytest.raises(AssertionError):
        test_a_linear_model_is_without_infidelity(lrp)


def test_what_quantus_calls() -> None:
    model = Linear().eval()
    explain = quantus_explainer("gradient")
    x, y = X.numpy().astype(np.float32), np.array([0, 1, 1, 0])
    found = explain(model=model, inputs=x, targets=y, device="cpu")
    assert found.shape == x.shape
    weight = model.map.weight.detach().numpy()
    assert found == pytest.approx(weight[y] * x, abs=1e-6)
    model.map.weight.data.mul_(2)  # as Quantus does when it randomises a model
    assert explain(model, x, y) == pytest.approx(2 * found, abs=1e-6)
    other = Linear().eval()
    assert explain(other, x, y) == pytest.approx(found, abs=1e-6)


def test_errors(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fxlrp.InputError, match="not token ids"):
        CaptumSensitivity().run(fxlrp.convert(Votes().eval(), "gradient"), IDS)
    with pytest.raises(fxlrp.InputError, match="samples must be at least 1, not 0"):
        CaptumInfidelity(samples=0)
    importing = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.startswith("captum"):
            raise ImportError(name)
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(fxlrp.MissingExtraError, match=r"fxlrp\[evaluate\]"):
        CaptumSensitivity().run(lrp, X)
