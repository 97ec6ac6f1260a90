"""The gradient of norms over images is their derivative, for one sample and in every layout that values have in memory.

A ledger cannot tell: it closes on whatever torch's backward gives. Torch's own norms over batches and instances give
wrong gradients on a CPU where these lie channels-last, which a linear layer behind an image leaves them as. What is
asked of every kind of operator stands in ``test_kinds.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.rewrite import few_rows, kernels
from fxlrp.testing import check_derivative
from tests.support.layouts import Call, faults


class Patches(nn.Module):
    """An image in patches, normed channel by channel, then mixed pixel by pixel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 2, 2), norm
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        rows = self.norm(self.embed(x)).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.mix(rows)).mean(1))


NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "batch norm of the batch": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm of fixed statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 8),
}


def patches(norm: str) -> tuple[Patches, Tensor]:
    """A model in float64 with a norm whose statistics are not trivial, and two images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Patches(NORMS[norm]()).eval().double()
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2) if name.endswith("var") else buffer.normal_()
        return model, torch.randn(2, 3, 8, 8).double()


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_is_explained_alone_by_its_derivative(norm: str) -> None:
    """By central differences of the model itself, which no backward pass takes part in."""
    model, images = patches(norm)
    one = images[:1]
    lrp = fxlrp.convert(model, "gradient")
    gradient = lrp.attribute(one, target=1).relevance / one
    direction = torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=one.dtype)
    with torch.no_grad():
        ends = [float(model(one + step * direction)[0, 1]) for step in (1e-5, -1e-5)]
    assert abs((ends[0] - ends[1]) / 2e-5 - float((gradient * direction).sum())) < 1e-7


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "batch norm of the batch"])  # which mixes samples
@pytest.mark.parametrize("ruleset", ["epsilon", "attnlrp", "gradient"])
def test_an_image_is_explained_alone_as_in_a_batch(norm: str, ruleset: str) -> None:
    model, images = patches(norm)
    lrp = fxlrp.convert(model, ruleset)
    together, alone = (lrp.attribute(x, target=1).relevance for x in (images, images[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-12)


def test_torchs_own_batch_norm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the differences in a model, where it is run whole, and by itself in other layouts. Once torch is right here,
    this fails: then it may run whole again.
    """
    model, images = patches("batch norm")
    monkeypatch.setitem(kernels.PLAIN, kernels.BATCH_NORM, kernels.BATCH_NORM)
    assert not check_derivative(model, images[:1], target=1).passed
    x = model.embed(images[:1]).detach().requires_grad_()
    norm = model.norm
    values = (x, norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach())
    assert faults(Call(F.batch_norm, values, {}))


def test_a_wrong_backward_is_found_out_though_the_ledger_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant of the linear layer behind the last softmax, whose backward forgets a row in ten."""
    model, images = patches("batch norm")
    right = few_rows.FewRowsProduct.apply

    def wrong(g: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = right(g, weight)
        kept = torch.ones_like(product)
        kept.flatten(0, -2)[::10] = 0
        return product * kept

    lrp = fxlrp.convert(model, "gradient", example_inputs=images)
    check_derivative(lrp, images, target=1).raise_if_failed()
    monkeypatch.setattr(few_rows.FewRowsProduct, "apply", wrong)
    report = check_derivative(lrp, images, target=1)
    assert report.error > 0.01
    assert "NOT the derivative" in str(report)
    with pytest.raises(fxlrp.FxlrpError, match="NOT the derivative"):
        report.raise_if_failed()
    result = lrp.attribute(images, target=1, ledger=True)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-9
