"""`check_conservation` passes what conserves, and says where relevance went when it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxlrp import FxlrpError
from fxlrp.engine.ledger import Entry, Ledger
from fxlrp.testing import check_conservation, realistic
from fxlrp.testing.checks import relative_gap


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def _net() -> Net:
    return realistic(Net().double().eval())


def _x(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_a_conserving_model_passes() -> None:
    report = check_conservation(_net(), "conservative", {"x": _x()}, target=1)
    assert report.passed
    assert report.gap < 1e-13
    assert report.tolerance == 1e-9
    assert report.values_equal
    assert report.max_value_error == 0
    report.raise_if_failed()
    assert "conserved under conservative" in str(report)
    assert "bias" in str(report)


def test_lower_precision_has_a_wider_tolerance() -> None:
    report = check_conservation(_net().float(), "conservative", _x(torch.float32))
    assert report.tolerance == 1e-5
    assert report.passed
    assert not check_conservation(_net().float(), "conservative", _x(torch.float32), tolerance=1e-15).passed


def test_a_gap_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Ledger.gap.fget
    assert kept is not None
    monkeypatch.setattr(Ledger, "gap", property(lambda self: kept(self) + 0.5))
    report = check_conservation(_net(), "conservative", {"x": _x()})
    assert not report.passed
    assert "NOT conserved" in str(report)
    with pytest.raises(FxlrpError, match="NOT conserved"):
        report.raise_if_failed()


@pytest.mark.parametrize(
    ("explained", "amounts", "expected"),
    [
        ([2.0], [[1.5], [0.4]], 0.05),  # relative to what is explained
        ([1e-6], [[1.0], [-1.0]], 1e-6 / 2e-3),  # a cancelling sum: relative to its terms
        ([2.0, 4.0], [[2.0, 2.0]], 0.5),  # the worst sample counts
        ([0.0], [[0.0]], 0.0),
        ([float("nan")], [[1.0]], float("nan")),
    ],
)
def test_relative_gap(explained: list[float], amounts: list[list[float]], expected: float) -> None:
    entries = tuple(Entry("x", "input", torch.tensor(amount, dtype=torch.float64)) for amount in amounts)
    gap = relative_gap(Ledger(entries, torch.tensor(explained, dtype=torch.float64)))
    assert gap == pytest.approx(expected, nan_ok=True)
