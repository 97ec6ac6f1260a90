"""Which output is explained: the only one, the logits, or the one that is asked for; how many samples it has."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.support.calls import with_forward

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
X = torch.randn(2, 4)
made = partial(with_forward, NET)


def attributed(model: nn.Module, x: Any = X, **options: Any) -> fxlrp.Attribution:
    return fxlrp.convert(model, "epsilon").attribute(x, **options)


EXPECTED = attributed(NET, target=1).relevance


@dataclasses.dataclass
class Both:
    """Two values, of which neither is known to be the answer."""

    features: Tensor
    scores: Tensor


SEVERAL: dict[str, tuple[Any, str]] = {
    "dict": (lambda f, y: {"features": f, "scores": y}, "scores"),
    "tuple": (lambda f, y: (f, y), "1"),
    "dataclass": (Both, "scores"),
    "nested": (lambda f, y: {"features": f, "heads": [y]}, "heads.0"),
}


def _with_features(make: Any) -> Any:
    return made(lambda self, x: make(self.net[:2](x), self.net(x)))


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_outputs_one_must_be_named(kind: str) -> None:
    make, name = SEVERAL[kind]
    model = _with_features(make)
    with pytest.raises(fxlrp.TargetError, match="Say which is explained") as raised:
        attributed(model, target=1)
    assert f"'{name}' [2, 2]" in str(raised.value)
    torch.testing.assert_close(attributed(model, target=(name, 1)).relevance, EXPECTED)
    best = attributed(NET)
    torch.testing.assert_close(attributed(model, target=(name,)).relevance, best.relevance)


def test_logits_beside_features_are_what_is_explained() -> None:
    model = _with_features(lambda f, y: {"features": f, "logits": y})
    torch.testing.assert_close(attributed(model, target=1).relevance, EXPECTED)


def test_one_number_per_sample() -> None:
    model = made(lambda self, x: self.net(x)[:, 1])
    found = attributed(model, ledger=True)
    torch.testing.assert_close(found.relevance, EXPECTED)
    assert found.ledger is not None
    assert found.ledger.gap.shape == (2,)
    assert float(found.ledger.gap.abs().max()) < 1e-6
    assert found.label == ["output", "output"]
    with pytest.raises(fxlrp.TargetError, match="leave target= out"):
        attributed(model, target=1)


def test_one_number_for_all_is_one_sample() -> None:
    model = made(lambda self, x: self.net(x)[:, 1].sum())
    found = attributed(model, ledger=True)
    assert found.explained.shape == (1,)
    torch.testing.assert_close(found.relevance, EXPECTED)


def test_scores_without_a_batch_are_no_samples() -> None:
    with pytest.raises(fxlrp.TargetError, match="no batch axis"):
        attributed(NET, X[0])


def test_a_ruleset_that_compares_classes_says_that_there_are_none() -> None:
    with pytest.raises(fxlrp.TargetError, match="compares the scores of classes"):
        fxlrp.convert(made(lambda self, x: self.net(x)[:, 1]), "clrp").attribute(X)


class TimeFirst(nn.Module):
    """[time, batch, 4] to [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        out: Tensor = self.head(self.layer(x)[1][0][-1])
        return out


#: Models whose inputs hold other numbers of rows than there are samples, and how one sample is given alone.
SAMPLES: dict[str, tuple[Any, dict[str, Tensor], Any]] = {
    "time first": (TimeFirst, {"x": torch.randn(3, 2, 4)}, lambda given, i: {"x": given["x"][:, i : i + 1]}),
    "several images per text": (
        lambda: made(lambda self, images, text: self.net(images.view(len(text), -1, 4).mean(1) + text)),
        {"images": torch.randn(6, 4), "text": torch.randn(2, 4)},
        lambda given, i: {"images": given["images"][3 * i : 3 * i + 3], "text": given["text"][i : i + 1]},
    ),
    "nodes of one graph": (
        lambda: made(lambda self, nodes, edges: self.net(edges @ nodes).mean(0, keepdim=True)),
        {"nodes": torch.randn(5, 4), "edges": torch.rand(5, 5)},
        None,
    ),
}


@pytest.mark.parametrize("target", [1, lambda outputs: outputs[:, 1]])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_explained_values_say_how_many_samples_there_are(name: str, target: Any) -> None:
    build, given, alone = SAMPLES[name]
    torch.manual_seed(0)
    model = build().eval()
    lrp = fxlrp.convert(model, "epsilon")
    found = lrp.attribute(given, target=target, ledger=True)
    samples = len(model(**given))
    assert found.explained.shape == (samples,)
    assert len(found.label) == samples
    assert found.ledger is not None
    assert found.ledger.gap.shape == (samples,)
    assert float(found.ledger.gap.abs().max()) < 1e-5
    if alone is not None:
        parts = [lrp.attribute(alone(given, i), target=target).relevance for i in range(samples)]
        joined = torch.cat(parts, 1 if name == "time first" else 0)
        torch.testing.assert_close(found.relevance, joined, rtol=1e-4, atol=1e-6)
