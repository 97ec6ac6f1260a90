"""Several rulesets on one data set: their agreement by hand, whose statistics are best, what is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import Evaluation, Perturbation, Protocol, concordance
from fxlrp.evaluate.concordance import rank_agreement
from fxlrp.evaluate.protocol import Measure, Measured
from fxlrp.evaluate.standings import standings
from fxlrp.results.attribution import Attribution, RulesetInfo

RULESETS = ["attnlrp", "gradient", "epsilon"]


class Model(nn.Module):
    """Token ids through a layer with bias and an activation; padding is left out of the mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = torch.nn.functional.gelu(self.hidden(self.embed(input_ids)))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.out((x * mask[..., None]).sum(1))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model().double().eval()


def batches(count: int = 3, size: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(1, 11, (size, 7), generator=generator)} for _ in range(count)]


def scored(*rows: list[float], mask: list[int] | None = None, name: str = "x", **more: object) -> Attribution:
    relevance = torch.tensor(rows)
    usual = {
        "relevance": relevance,
        "inputs": {"input_ids": relevance},
        "features": relevance,
        "outputs": None,
        "target": 0,
        "explained": relevance.flatten(1).sum(1),
        "label": ["a"] * len(rows),
        "ruleset": RulesetInfo(name, "1", "0"),
        "of_ids": True,
        "attention_mask": None if mask is None else torch.tensor([mask] * len(rows)),
    }
    return Attribution(**{**usual, **more})


def test_agreement_by_hand() -> None:
    a, b, c = scored([1.0, 2.0, 3.0, 4.0]), scored([10.0, 30.0, 20.0, 40.0]), scored([0.0, -1.0, -2.0, -3.0])
    rho = rank_agreement([a, b, c])[0]
    # 1 - 6 sum d^2 / (n (n^2 - 1)): d = (0, 1, 1, 0) for a and b, and the opposite order.
    assert torch.allclose(rho, torch.tensor([[1.0, 0.8, -1.0], [0.8, 1.0, -0.8], [-1.0, -0.8, 1.0]]).double())


def test_padding_has_no_rank() -> None:
    a, b = (scored([1.0, 2.0, 3.0, v], mask=[1, 1, 1, 0]) for v in (9.0, -9.0))
    assert rank_agreement([a, b]).tolist() == [[[1, 1], [1, 1]]]


def test_padding_that_has_a_rank_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concordance, "spearman", lambda a, b, present, rho=concordance.spearman: rho(a, b))
    with pytest.raises(AssertionError):
        test_padding_has_no_rank()


def test_patches_are_compared_as_pixels() -> None:
    pixels = torch.arange(64.0).view(1, 1, 8, 8)
    whole = scored([0.0], relevance=pixels, image_size=(8, 8), of_ids=False)
    patches = scored([0.0, 2.0, 5.0, 7.0], image_size=(8, 8), of_ids=False)
    rho = rank_agreement([whole, patches])[0, 0, 1]
    expected = torch.corrcoef(torch.stack([pixels.flatten(), patches.map(8).flatten()]).argsort(1).argsort(1).float())
    assert rho == pytest.approx(float(expected[0, 1]), abs=0.02)  # the enlarged map has ties
    assert rho > 0.8


def test_what_has_no_common_units_has_no_agreement() -> None:
    rho = rank_agreement([scored([1.0, 2.0, 3.0]), scored([1.0, 2.0]), scored([1.0, 1.0, 1.0])])[0]
    assert rho[0, 0] == 1
    assert all(math.isnan(x) for x in (rho[0, 1], rho[0, 2], rho[1, 2]))
    comparison = fxlrp.Comparison({"a": scored([1.0, 2.0, 3.0]), "b": scored([1.0, 2.0])})
    assert "score different parts" in comparison.to_html()


def test_agreement_is_symmetric_and_one_with_itself(model: Model) -> None:
    twice = fxlrp.compare(model, batches(), [*RULESETS, "attnlrp"])
    assert twice.names == ("attnlrp", "gradient", "epsilon", "attnlrp (2)")
    assert twice.agreements.shape == (12, 4, 4)  # all samples, though one batch is shown
    matrix = twice.agreement
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix.diagonal(), torch.ones(4).double())
    assert matrix[0, 3] == pytest.approx(1)
    assert matrix[0, 1] < 0.999


def test_agreement_is_the_same_batch_by_batch(model: Model) -> None:
    parts = batches()
    whole = {"input_ids": torch.cat([part["input_ids"] for part in parts])}
    by_batch, at_once = (fxlrp.compare(model, given, RULESETS, target=1) for given in (parts, whole))
    assert torch.allclose(by_batch.agreements, at_once.agreements)
    assert len(by_batch["attnlrp"].explained) == 4
    assert len(fxlrp.compare(model, parts, RULESETS, shown=2)["epsilon"].explained) == 2


def test_protocols_run_for_every_ruleset(model: Model, tmp_path: Path) -> None:
    data = [(each, torch.zeros(4, dtype=torch.long)) for each in batches()]
    protocol = Perturbation("most", "remove", fractions=3, replace=0, of="label")
    found = fxlrp.compare(model, data, RULESETS, protocols=[protocol], resume=tmp_path)
    assert len(list(tmp_path.iterdir())) == 9  # batches x rulesets
    for name in RULESETS:
        alone = protocol.run(fxlrp.convert(model, name), data)
        assert found.evaluations[name][0].statistics == alone.statistics
        standing = found.standings[0]
        assert standing.intervals[name] == alone.intervals()["auac"]


@dataclass(frozen=True)
class Means(Protocol):
    """The mean of numbers given by hand. A second sentence."""

    way: int = 1

    def start(self, lrp: fxlrp.ConvertedModel) -> Measure:
        raise NotImplementedError

    def statistics(self, measured: Measured) -> dict[str, float]:
        return {"mean": float(measured["x"].mean()), "count": float(len(measured["x"]))}

    def better(self) -> dict[str, int]:
        return {"mean": self.way}


def evaluations(way: int = 1, **values: list[float]) -> dict[str, list[Evaluation]]:
    return {
        name: [Evaluation(Means(way), RulesetInfo(name, "1", "0"), {"x": torch.tensor(x).double()})]
        for name, x in values.items()
    }


NUMBERS = {"low": [0.0, 0.1] * 20, "high": [0.9, 1.1] * 20, "near": [0.7, 1.28] * 20}


@pytest.mark.parametrize(("way", "places"), [(1, ("", "best", "close")), (-1, ("best", "", "")), (0, ("", "", ""))])
def test_the_best_and_those_that_are_not_told_from_it(way: int, places: tuple[str, ...]) -> None:
    mean, count = standings(evaluations(way, **NUMBERS))
    assert tuple(mean.places[name] for name in ("low", "high", "near")) == places
    assert set(count.places.values()) == {""}  # it speaks for nobody
    assert (mean.samples, mean.better, mean.meaning) == (40, way, "mean")
    assert mean.protocol.summary == "The mean of numbers given by hand."


def test_a_small_but_constant_difference_tells_two_apart() -> None:
    """Both intervals are wide and overlap; sample by sample, one is larger every time."""
    values = [0.0, 1.0, 2.0, 3.0] * 10
    mean, _ = standings(evaluations(best=values, worse=[x - 0.05 for x in values]))
    assert mean.intervals["worse"].high > mean.intervals["best"].low
    assert mean.places == {"best": "best", "worse": ""}


def test_a_value_that_is_none_is_never_best() -> None:
    mean, _ = standings(evaluations(none=[math.nan] * 4, some=[1.0, 2.0, 3.0, 4.0]))
    assert mean.places == {"none": "", "some": "best"}


def test_what_was_measured_otherwise_is_not_compared() -> None:
    with pytest.raises(fxlrp.InputError, match="different options or samples"):
        standings({**evaluations(1, a=[1.0]), **evaluations(-1, b=[1.0])})
    with pytest.raises(fxlrp.InputError, match="different options or samples"):
        standings(evaluations(a=[1.0], b=[1.0, 2.0]))
    with pytest.raises(fxlrp.InputError, match="same protocols"):
        standings({**evaluations(a=[1.0]), "b": []})


def test_a_table_has_a_row_per_statistic_and_ruleset() -> None:
    pytest.importorskip("pandas", reason="the extra 'data' is not installed")
    shown = {name: scored([1.0, 2.0], name=name) for name in NUMBERS}
    table = fxlrp.Comparison(shown, evaluations(**NUMBERS)).table()
    assert len(table) == 2 * 3
    row = table[(table.ruleset == "high") & (table.statistic == "mean")].iloc[0]
    assert (row.value, row.place, row.samples, row.better) == (pytest.approx(1.0), "best", 40, 1)
    assert row.low < row.value < row.high


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "no batch"),
        (batches(), {"rulesets": []}, "no ruleset"),
        (batches(), {"target": [0, 1, 2, 0]}, "A target per sample"),
        (batches(), {"shown": 0}, "shown must be at least 1"),
    ],
)
def test_errors(model: Model, inputs: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(fxlrp.InputError, match=message):
        fxlrp.compare(model, inputs, **{"rulesets": RULESETS, **options})


def test_each_ruleset_gets_the_options_that_it_has(model: Model) -> None:
    found = fxlrp.compare(
        model, batches(1)[0], ["epsilon", "integrated-gradients", "smoothgrad"], at="hidden", ledger=True
    )
    assert [bool(each.ledger) for each in found.attributions.values()] == [True, False, False]
    assert [list(each.at) for each in found.attributions.values()] == [["hidden"], [], ["hidden"]]


def test_a_ruleset_alone_says_what_it_has_not(model: Model) -> None:
    with pytest.raises(fxlrp.InputError, match="A ledger accounts for"):
        fxlrp.compare(model, batches(1)[0], ["integrated-gradients"], ledger=True)


def test_a_ruleset_that_does_not_fit_the_model_is_left_out_with_its_reason(model: Model, tmp_path: Path) -> None:
    names = ["attnlrp", "rollout", "gradient", "pa-lrp"]
    protocols = [Perturbation(replace=0)]
    with pytest.warns(UserWarning, match="'rollout' is left out of the comparison: Model has no attention"):
        found = fxlrp.compare(model, batches(), names, target=1, protocols=protocols)
    assert found.names == ("attnlrp", "gradient", "pa-lrp")
    assert list(found.left_out) == ["rollout"]
    assert list(found.evaluations) == list(found.names)
    assert found.agreements.shape == (12, 3, 3)
    assert "rollout</b> is left out: Model has no attention" in found.to_html()


def test_where_only_one_ruleset_is_left_the_report_still_says_so(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="left out"):
        found = fxlrp.compare(model, batches(1), ["rollout", "gradient"], target=1)
    found.show()
    assert "rollout is left out: Model has no attention" in capsys.readouterr().out
    assert "is left out" in found.to_html()


def test_where_none_fits_the_reason_is_an_error(model: Model) -> None:
    with pytest.raises(fxlrp.InputError, match="has no attention"):
        fxlrp.compare(model, batches(1), ["rollout", "raw-attention"], target=1)
