"""Perturbation curves: by hand on a model whose answer is known, and what every run promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.evaluate import Perturbation, memory, perturbation, units
from fxlrp.evaluate.units import ORDERS

UNK = 0


class Votes(nn.Module):
    """Each token votes for class 1 with its own weight; [UNK] has none.  ids: [batch, tokens]."""

    main_input_name = "input_ids"  # attention_mask is then what transformers means by it

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Embedding(7, 1)
        self.weight.weight.data = torch.tensor([0.0, 1.0, 2.0, -1.0, -3.0, 0.5, 4.0])[:, None].double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        votes = self.weight(input_ids)[..., 0]
        if attention_mask is not None:
            votes = votes * attention_mask
        total = votes.sum(1)
        return torch.stack([torch.zeros_like(total), total], 1)


IDS = torch.tensor([[1, 6, 4, 2], [3, 5, 2, 2]])


@pytest.fixture(scope="module")
def lrp() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Votes().eval(), "gradient")


@pytest.mark.parametrize(
    ("order", "mode", "logits"),
    [  # totals of class 1 for the two samples, at 0, 1/2 and 1
        ("most", "remove", [(4.0, 3.5), (-2.0, -0.5), (0.0, 0.0)]),
        ("least", "remove", [(4.0, 3.5), (6.0, 4.0), (0.0, 0.0)]),
        ("absolute-least", "remove", [(4.0, 3.5), (1.0, 4.0), (0.0, 0.0)]),
        ("absolute-most", "remove", [(4.0, 3.5), (3.0, -0.5), (0.0, 0.0)]),
        ("most", "add", [(0.0, 0.0), (6.0, 4.0), (4.0, 3.5)]),
    ],
)
def test_by_hand(lrp: fxlrp.ConvertedModel, order: str, mode: str, logits: list[tuple[float, float]]) -> None:
    found = perturbation(lrp, {"input_ids": IDS}, order, mode, fractions=3, replace=UNK, watch="logit")
    expected = torch.tensor(logits).double().T
    assert torch.equal(found.curves, expected)
    whole = torch.tensor([4.0, 3.5]).double()
    assert torch.allclose(found.mse_curve, ((expected - whole[:, None]) ** 2).mean(0))
    assert found.auac == pytest.approx(float(torch.trapezoid(expected.mean(0), dx=0.5)))
    assert found.au_mse == pytest.approx(float(torch.trapezoid(found.mse_curve, dx=0.5)))


def test_probability_and_accuracy(lrp: fxlrp.ConvertedModel) -> None:
    batch = (IDS, torch.tensor([1, 0]))
    probability = perturbation(lrp, [batch], fractions=3, replace=UNK, order="most")
    assert torch.allclose(probability.curves[:, 1], torch.tensor([-2.0, -0.5]).double().sigmoid())
    labels = perturbation(lrp, [batch], fractions=3, replace=UNK, order="most", watch="accuracy", watch_label=True)
    assert labels.curves[:, :2].tolist() == [[1, 0], [0, 1]]
    explained = perturbation(lrp, [batch], fractions=3, replace=UNK, watch="logit", of="label")
    assert explained.curves[1].tolist() == [0, 0, 0]  # class 0 has no votes: all orders are alike


def test_a_language_model_is_watched_at_the_explained_position() -> None:
    class Positions(Votes):
        main_input_name = "input_ids"

        def can_generate(self) -> bool:
            return True

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            total = self.weight(input_ids)[..., 0].cumsum(1)
            return torch.stack([torch.zeros_like(total), total], -1)

    lrp = fxlrp.convert(Positions().eval(), "gradient")
    found = perturbation(lrp, {"input_ids": IDS}, fractions=3, replace=UNK, watch="logit")
    assert found.curve.tolist() == [3.75, -1.25, 0.0]
    assert found.mse_curve.tolist() == [0.0, (6.0**2 + 4.0**2) / 2, (4.0**2 + 3.5**2) / 2]


def test_padding_is_no_unit(lrp: fxlrp.ConvertedModel) -> None:
    ids, mask = torch.tensor([[1, 6, 4, 2, 6, 6]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    padded = perturbation(lrp, {"input_ids": ids, "attention_mask": mask}, fractions=3, replace=UNK, watch="logit")
    assert padded.curve.tolist() == [4.0, -2.0, 0.0]


def test_special_tokens_stay(lrp: fxlrp.ConvertedModel) -> None:
    found = perturbation(lrp, {"input_ids": IDS[:1]}, fractions=2, replace=UNK, watch="logit", keep=(6,))
    assert found.curve.tolist() == [4.0, 4.0]  # 6 alone is left, with a vote of 4


@pytest.mark.parametrize(("rounding", "gone"), [("up", 4), ("down", 3)])
def test_fractions_are_rounded(lrp: fxlrp.ConvertedModel, rounding: str, gone: int) -> None:
    ids = torch.ones(1, 10, dtype=torch.long)
    options = {"fractions": (0.0, 0.3, 0.35), "replace": UNK, "watch": "logit", "rounding": rounding}
    found = perturbation(lrp, {"input_ids": ids}, **options)
    assert found.curve.tolist() == [10.0, 7.0, 10.0 - gone]


def test_pixels_go_with_all_their_channels() -> None:
    class Sums(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            total = image.sum((1, 2, 3))
            return torch.stack([torch.zeros_like(total), total], 1)

    image = torch.zeros(1, 2, 2, 2).double()
    image[0, 0, 0, 0], image[0, 1, 1, 1] = 3, 5
    lrp = fxlrp.convert(Sums().eval(), "gradient")
    found = perturbation(lrp, image, fractions=5, watch="logit")
    assert found.curve.tolist() == [8.0, 3.0, 0.0, 0.0, 0.0]
    grey = perturbation(lrp, image, fractions=(0.0, 0.25), watch="logit", replace=torch.tensor([1.0, 2.0]))
    assert grey.curve.tolist() == [8.0, 6.0]


def test_a_random_order_is_drawn_from_its_seed(lrp: fxlrp.ConvertedModel) -> None:
    ids = torch.randint(1, 7, (8, 12), generator=torch.Generator().manual_seed(0))
    runs = [perturbation(lrp, ids, "random", replace=UNK, seed=seed).curves for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_right_order_is_the_best(lrp: fxlrp.ConvertedModel) -> None:
    ids = torch.randint(1, 7, (32, 12), generator=torch.Generator().manual_seed(0))
    areas = {o: perturbation(lrp, ids, o, "add", replace=UNK, of="predicted").auac for o in ("most", "random", "least")}
    assert areas["most"] > areas["random"] + 0.05 > areas["least"] + 0.1


def test_an_order_turned_round_is_noticed(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ORDERS, "most", ORDERS["least"])
    with pytest.raises(AssertionError):
        test_by_hand(lrp, "most", "remove", [(4.0, 3.5), (-2.0, -0.5), (0.0, 0.0)])


def test_padding_that_counts_is_noticed(lrp: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "present_tokens", lambda result, ids, keep: torch.ones_like(ids, dtype=torch.bool))
    with pytest.raises(AssertionError):
        test_padding_is_no_unit(lrp)


def test_a_run_goes_on_where_it_stopped(
    lrp: fxlrp.ConvertedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [{"input_ids": IDS}, {"input_ids": IDS + 0 * IDS}, {"input_ids": IDS.flip(1)}]
    protocol = Perturbation("most", replace=UNK)
    asked: list[int] = []
    attribute = fxlrp.ConvertedModel.attribute

    def counted(self: fxlrp.ConvertedModel, *args: object, **options: object) -> fxlrp.Attribution:
        asked.append(1)
        return attribute(self, *args, **options)

    monkeypatch.setattr(fxlrp.ConvertedModel, "attribute", counted)
    with pytest.raises(ZeroDivisionError):
        protocol.run(lrp, (b if i < 2 else 1 // 0 for i, b in enumerate(batches)), resume=tmp_path)
    assert len(asked) == 1  # the second batch equals the first
    whole = protocol.run(lrp, batches, resume=tmp_path)
    assert len(asked) == 2
    assert torch.equal(whole.measured["curve"], protocol.run(lrp, batches).measured["curve"])
    protocol.run(lrp.with_ruleset("ali2022"), batches, resume=tmp_path)
    Perturbation("least", replace=UNK).run(lrp, batches, resume=tmp_path)
    assert len(asked) == 2 + 3 + 2 + 2  # another ruleset, another protocol: measured anew


def test_what_is_remembered_depends_on_all_contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mutant of the test above: a memory that looks at types alone."""
    monkeypatch.setattr(memory, "fingerprint", lambda value: str(type(value)))
    lrp = fxlrp.convert(Votes().eval(), "gradient")
    with pytest.raises(AssertionError):
        test_a_run_goes_on_where_it_stopped(lrp, tmp_path, monkeypatch)


def test_intervals_cover_the_value(lrp: fxlrp.ConvertedModel) -> None:
    ids = torch.randint(1, 7, (64, 6), generator=torch.Generator().manual_seed(0))
    found = perturbation(lrp, ids, replace=UNK, watch="logit")
    interval = found.intervals(draws=400)["auac"]
    areas = torch.trapezoid(found.curves, found.fractions)
    error = float(areas.std() / len(areas) ** 0.5)  # the standard error, which the bootstrap estimates
    assert interval.low < interval.value == found.auac < interval.high
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "mots"}, "Did you mean 'most'"),
        ({"mode": "drop"}, "no mode='drop'"),
        ({"fractions": (0.5, 0.2)}, "must rise"),
        ({"fractions": 1}, "at least two"),
        ({"replace": None}, "tokenizer.unk_token_id"),
        ({"replace": 0.5}, "is not a token id"),
        ({"of": "label"}, "needs the labels"),
    ],
)
def test_errors(lrp: fxlrp.ConvertedModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(fxlrp.InputError, match=message):
        perturbation(lrp, {"input_ids": IDS}, **{"replace": UNK, **options})


def test_no_batch_is_an_error(lrp: fxlrp.ConvertedModel) -> None:
    with pytest.raises(fxlrp.InputError, match="nothing to evaluate"):
        perturbation(lrp, [], replace=UNK)
    with pytest.raises(fxlrp.InputError, match="iterable of inputs"):
        perturbation(lrp, 3, replace=UNK)


def test_it_plots_and_prints(lrp: fxlrp.ConvertedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = perturbation(lrp, {"input_ids": IDS}, replace=UNK)
    found.plot().savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    found.show()
    printed = capsys.readouterr().out
    assert "auac" in printed
    assert f"{found.auac:.3f}" in printed
    assert list(found.to_dataframe()["curve[0]"]) == found.curves[:, 0].tolist()
