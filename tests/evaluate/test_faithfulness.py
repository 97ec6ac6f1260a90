"""Areas between curves, ERASER's scores and leaving units out: by hand, and against scipy."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import AreaBetween, Eraser, LeaveOneOut, Perturbation, faithfulness, groups
from fxlrp.evaluate.groups import Grouped
from tests.evaluate.test_perturbation import IDS, UNK, Votes

spearmanr = pytest.importorskip("scipy.stats", reason="the reference: pip install 'fxlrp[evaluate]'").spearmanr


class Curved(nn.Module):
    """Class 1 is the sum over pixels of x + x^2 / 2, so that its gradient is not what leaving pixels out does."""

    def forward(self, image: Tensor) -> Tensor:
        total = (image + image**2 / 2).sum((1, 2, 3))
        return torch.stack([-total, total], 1)


@pytest.fixture(scope="module")
def votes() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Votes().eval(), "gradient")


@pytest.fixture(scope="module")
def curved() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Curved().eval(), "gradient")


def test_the_area_between_curves_by_hand(votes: fxlrp.ConvertedModel) -> None:
    """From test_perturbation: least first 4, 6, 0 and 3.5, 4, 0; most first 4, -2, 0 and 3.5, -0.5, 0."""
    found = AreaBetween(3, UNK).run(votes, {"input_ids": IDS})
    assert found["abpc"] == pytest.approx(((6 + 2) / 3 + (4 + 0.5) / 3) / 2)
    assert AreaBetween(3, UNK).better() == {"abpc": 1}


def test_curves_mixed_up_are_noticed(votes: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = AreaBetween.curves.fget
    monkeypatch.setattr(AreaBetween, "curves", property(lambda self: turned(self)[::-1]))
    with pytest.raises(AssertionError):
        test_the_area_between_curves_by_hand(votes)


def test_comprehensiveness_and_sufficiency_by_hand(votes: fxlrp.ConvertedModel) -> None:
    """Votes 1, 4, -3, 2: the first fourth is the 4, the first half the 4 and the 2."""
    found = Eraser((0.01, 0.5), UNK, of="label").run(votes, [(IDS[:1], [1])])
    p = torch.tensor([4.0, 0.0, -2.0, 4.0, 6.0]).double().sigmoid()
    assert torch.allclose(found.measured["comprehensiveness"], (p[0] - p[1:3])[None])
    assert torch.allclose(found.measured["sufficiency"], (p[0] - p[3:])[None])
    assert found["comprehensiveness"] == pytest.approx(float(p[0] - p[1:3].mean()))


def test_sufficiency_without_the_rationale_is_noticed(
    votes: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Eraser, "curves", property(lambda self: (Perturbation("most", "remove", (0.0, *self.shares), UNK),) * 2)
    )
    with pytest.raises(AssertionError):
        test_comprehensiveness_and_sufficiency_by_hand(votes)


def test_leaving_out_pixels_is_what_scipy_computes(curved: fxlrp.ConvertedModel) -> None:
    image = torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    relevance, effect = image + image**2, image + image**2 / 2
    found = LeaveOneOut(of="label").run(curved, [(image, [1, 1, 1])])
    expected = [spearmanr(r.flatten(), e.flatten()).statistic for r, e in zip(relevance, effect, strict=True)]
    assert max(expected) < 0.9999
    assert found.measured["spearman"].tolist() == pytest.approx(expected)
    grouped = LeaveOneOut(of="label", patch=2).run(curved, [(image, [1, 1, 1])])
    pooled = [nn.functional.avg_pool2d(value, 2).flatten(1) for value in (relevance, effect)]
    expected = [spearmanr(r, e).statistic for r, e in zip(*pooled, strict=True)]
    assert grouped.measured["spearman"].tolist() == pytest.approx(expected)


def test_patches_that_are_columns_are_noticed(curved: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = torch.arange(24).view(6, 4).T.flatten() // 4
    wrong = lambda units, size: Grouped.of(units, columns.expand(len(units.relevance), -1))  # noqa: E731
    monkeypatch.setattr(faithfulness, "patches", wrong)
    with pytest.raises(AssertionError):
        test_leaving_out_pixels_is_what_scipy_computes(curved)


def test_leaving_out_tokens_ignores_padding(votes: fxlrp.ConvertedModel) -> None:
    """In a model that is linear, relevance is what leaving out does: rho is 1, and padding would lower it."""
    ids, mask = torch.tensor([[1, 6, 4, 2, 6, 6], [3, 5, 2, 1, 4, 6]]), torch.tensor([[1] * 4 + [0] * 2, [1] * 6])
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert LeaveOneOut(UNK, of="label").run(votes, [(inputs, [1, 1])])["spearman"] == pytest.approx(1)
    same = LeaveOneOut(UNK, of="label").run(votes, [(torch.ones(2, 3).long(), [1, 1])])
    assert same.measured["spearman"].isnan().all()  # all tokens are alike


def test_grouped_units_by_hand(votes: fxlrp.ConvertedModel) -> None:
    parts = fxlrp.evaluate.explanation.explain(votes, fxlrp.evaluate.Batch(IDS), 1, keep=(5,)).units
    group = torch.tensor([[0, 0, 1, -1], [1, 0, 2, 2]])
    grouped = Grouped.of(parts, group)
    assert grouped.relevance.tolist() == [[5, -3, 0], [0, -1, 4]]
    assert grouped.present.tolist() == [[True, True, False], [False, True, True]]
    chosen = torch.tensor([[True, False, False], [False, False, True]])
    assert grouped.replaced(chosen, UNK).tolist() == [[0, 0, 4, 2], [3, 5, 0, 0]]
    assert grouped.ranks("most").tolist() == [[0, 1, 2], [2, 1, 0]]


def test_a_resumed_run_draws_what_a_whole_one_does(votes: fxlrp.ConvertedModel, tmp_path: Path) -> None:
    ids = torch.randint(1, 7, (4, 8), generator=torch.Generator().manual_seed(0))
    batches = [ids[:2], ids[2:]]
    protocol = Perturbation("random", replace=UNK)
    protocol.run(votes, batches[:1], resume=tmp_path)
    whole = protocol.run(votes, batches).curves
    assert torch.equal(protocol.run(votes, batches, resume=tmp_path).curves, whole)


def test_one_stream_for_all_batches_is_noticed(
    votes: fxlrp.ConvertedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = torch.Generator().manual_seed(0)
    monkeypatch.setattr(import_module("fxlrp.evaluate.perturbation"), "drawing", lambda batch, seed: stream)
    with pytest.raises(AssertionError):
        test_a_resumed_run_draws_what_a_whole_one_does(votes, tmp_path)


def test_labels_of_logits_with_positions_are_refused() -> None:
    class Tagger(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, 2 * x], -1)  # [batch, positions, classes]

    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).double()
    lrp = fxlrp.convert(Tagger().eval(), "gradient")
    assert AreaBetween(2).run(lrp, x)["abpc"] == 0  # nothing gone, all gone
    with pytest.raises(fxlrp.InputError, match="positions, classes"):
        Perturbation(watch_label=True).run(lrp, [(x, [0, 1])])


def test_errors(votes: fxlrp.ConvertedModel) -> None:
    with pytest.raises(fxlrp.InputError, match="above 0"):
        Eraser((0.0, 0.5))
    with pytest.raises(fxlrp.InputError, match="must rise"):
        AreaBetween((0.5, 0.2))
    with pytest.raises(fxlrp.InputError, match="groups pixels"):
        LeaveOneOut(UNK, patch=2).run(votes, IDS)
    with pytest.raises(fxlrp.InputError, match="fast tokenizer"):
        groups.words(fxlrp.evaluate.explanation.explain(votes, fxlrp.evaluate.Batch(IDS)).units, IDS)
