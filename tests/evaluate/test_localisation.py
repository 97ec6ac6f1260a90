"""Published perturbation, segmentation and rationales: against the arithmetic of scikit-learn, on known relevance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import (
    Segmentation,
    TokenF1,
    ali2022_activation,
    ali2022_pruning,
    black,
    chefer2021_negative,
    chefer2021_positive,
    localisation,
)
from tests.evaluate.test_perturbation import IDS, UNK, Votes

metrics = pytest.importorskip("sklearn.metrics", reason="the reference: pip install 'fxlrp[evaluate]'")


class Bright(nn.Module):
    """Class 1 sums up all pixels, so that the relevance of a pixel is its own value."""

    def forward(self, image: Tensor) -> Tensor:
        total = image.sum((1, 2, 3))
        return torch.stack([-total, total], 1)


@pytest.fixture(scope="module")
def lrp() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Bright().eval(), "gradient")


@pytest.fixture(scope="module")
def votes() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Votes().eval(), "gradient")


def images() -> Tensor:
    return torch.randn(5, 2, 4, 6, generator=torch.Generator().manual_seed(1)).double() + 0.5


def truths() -> Tensor:
    return torch.randint(-1, 2, (5, 4, 6), generator=torch.Generator().manual_seed(2))


def test_segmentation_is_what_scikit_learn_computes(lrp: fxlrp.ConvertedModel) -> None:
    image, truth = images(), truths()
    found = Segmentation(of="label").run(lrp, [(image[:2], [1, 1], truth[:2]), (image[2:], [1, 1, 1], truth[2:])])
    maps = image.sum(1)
    known = truth >= 0
    predicted = maps > maps.mean((1, 2), keepdim=True)
    ours, theirs = predicted[known].numpy(), truth[known].numpy()
    assert found["pixel accuracy"] == pytest.approx(metrics.accuracy_score(theirs, ours))
    assert found["mIoU"] == pytest.approx(metrics.jaccard_score(theirs, ours, average="macro"))
    precision = []
    for one, mask, of in zip(maps, truth, known, strict=True):
        scaled = (one - one.min()) / (one.max() - one.min())
        scores = torch.stack([1 - scaled[of], scaled[of]], 1)
        wanted = nn.functional.one_hot(mask[of], 2)
        precision.append(metrics.average_precision_score(wanted.numpy(), scores.numpy(), average="micro"))
    assert found["mAP"] == pytest.approx(sum(precision) / 5)


def test_a_perfect_map_and_its_opposite(lrp: fxlrp.ConvertedModel) -> None:
    truth = (torch.arange(24).view(1, 4, 6) > 15).long()
    image = (truth[:, None].double() * 2 - 0.5).expand(-1, 2, -1, -1)
    for label, value in ((1, 1.0), (0, 0.0)):
        found = Segmentation(of="label").run(lrp, [(image, [label], truth)])
        assert found["pixel accuracy"] == found["mIoU"] == value
        assert (found["mAP"] == 1) is (label == 1)


def test_signs_of_maps(lrp: fxlrp.ConvertedModel) -> None:
    truth = torch.zeros(1, 2, 4).long()
    truth[0, 0] = 1
    image = torch.zeros(1, 1, 2, 4).double()
    image[0, 0, 0] = torch.tensor([-3.0, 3.0, 3.0, 3.0])
    accuracy = {
        sign: Segmentation("label", sign).run(lrp, [(image, [1], truth)])["pixel accuracy"]
        for sign in localisation.SIGNS
    }
    assert accuracy == {"as-is": 7 / 8, "absolute": 1.0, "positive": 7 / 8}


def test_maps_cut_at_nought_are_noticed(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(localisation.SIGNS, "as-is", torch.relu)
    with pytest.raises(AssertionError):
        test_segmentation_is_what_scikit_learn_computes(lrp)


def test_rationales_by_hand(votes: fxlrp.ConvertedModel) -> None:
    """Votes of the samples: 1, 4, -3, 2 and -1, 1/2, 2, 2."""
    truth = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    found = TokenF1((1, 2, 3, 9), of="label").run(votes, [(IDS, [1, 1], truth)])
    assert found.measured["f1"][0].tolist() == pytest.approx([2 / 3, 2 / 4, 4 / 5, 4 / 6])
    assert found.measured["f1"][1].tolist() == [0, 0, 0, 0]
    assert found["F1@3"] == pytest.approx(0.4)
    kept = TokenF1((1,), of="label", keep=(6,)).run(votes, [(IDS, [1, 1], truth)])
    assert kept.measured["f1"][0].tolist() == [0]  # without token 6, the 2 at the end comes first


def test_rationales_against_scikit_learn(votes: fxlrp.ConvertedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(6, generator=generator) + 1 for _ in range(4)])
    truth = torch.randint(0, 2, ids.shape, generator=generator)
    found = TokenF1((2, 4), of="label").run(votes, [(ids, [1] * 4, truth)])
    relevance = votes.model.weight(ids)[..., 0]
    for column, count in enumerate((2, 4)):
        top = relevance >= relevance.sort(1, descending=True).values[:, count - 1 : count]
        expected = [metrics.f1_score(t, p, zero_division=0) for t, p in zip(truth.numpy(), top.numpy(), strict=True)]
        assert found.measured["f1"][:, column].tolist() == pytest.approx(expected)


def test_the_least_relevant_tokens_are_noticed(votes: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = fxlrp.evaluate.units.Units.ranks
    monkeypatch.setattr(fxlrp.evaluate.units.Units, "ranks", lambda self, _: ranks(self, "least"))
    with pytest.raises(AssertionError):
        test_rationales_by_hand(votes)


def test_published_presets_by_hand(votes: fxlrp.ConvertedModel, lrp: fxlrp.ConvertedModel) -> None:
    batch = (IDS, torch.tensor([1, 1]))
    back = ali2022_activation(UNK, fractions=3, watch="logit").run(votes, [batch])
    assert back.curves.tolist() == [[0, 6, 4], [0, 4, 3.5]]
    gone = ali2022_pruning(UNK, fractions=3).run(votes, [batch])
    errors = torch.tensor([0, 3**2 + 0.5**2, 4**2 + 3.5**2]) / 2
    assert gone["au_mse"] == pytest.approx(float(torch.trapezoid(errors, dx=0.5)))
    assert len(ali2022_activation(UNK).steps) == 11
    assert ali2022_pruning(UNK).better()["au_mse"] == -1

    row = torch.tensor([-1.0] * 4 + [2.0, 2, 2, 1, 1, 1]).double().view(1, 1, 1, 10)
    positive = chefer2021_positive().run(lrp, [(row, [1])])
    assert positive.protocol.steps == pytest.approx([i / 10 for i in range(10)])
    assert positive.curve.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # sums: 5, 3, 1, -1 ...
    assert positive.auac == pytest.approx(0.25)
    assert chefer2021_negative().run(lrp, [(row, [1])]).auac == pytest.approx(0.9)
    assert chefer2021_negative().run(lrp, [(row, [0])]).auac == 0  # the label is watched, the prediction explained
    assert chefer2021_negative().better()["auac"] == 1
    assert black([0.5, 0.2], [0.5, 0.1]).tolist() == pytest.approx([-1, -2])


@pytest.mark.parametrize(
    ("protocol", "batch", "message"),
    [
        (Segmentation(), (images(), [1] * 5), "needs the truth"),
        (Segmentation(of="label"), (images(),), "needs the labels|needs the truth"),
        (Segmentation(), (images(), None, truths()[:, :2]), r"image's size \(4, 6\)"),
    ],
)
def test_errors_of_segmentation(
    lrp: fxlrp.ConvertedModel, protocol: Segmentation, batch: tuple[object, ...], message: str
) -> None:
    with pytest.raises(fxlrp.InputError, match=message):
        protocol.run(lrp, [batch])


def test_a_map_that_is_the_same_everywhere_finds_nothing(lrp: fxlrp.ConvertedModel) -> None:
    truth = truths()[:1]
    found = Segmentation().run(lrp, [(torch.ones(1, 2, 4, 6).double(), None, truth)])
    known = truth[truth >= 0]
    assert found["pixel accuracy"] == pytest.approx(float((known == 0).double().mean()))


def test_errors_of_options(votes: fxlrp.ConvertedModel) -> None:
    with pytest.raises(fxlrp.InputError, match="Did you mean 'absolute'"):
        Segmentation(sign="absolut")
    with pytest.raises(fxlrp.InputError, match="rise from 1"):
        TokenF1((0, 2))
    with pytest.raises(fxlrp.InputError, match="truth of the shape"):
        TokenF1().run(votes, [(IDS, None, torch.ones(2, 3))])
