"""Deleting words, and the words of a data set: by hand on models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

import fxlrp
from fxlrp.evaluate import Perturbation, WordDeletion, representative_words, words
from fxlrp.evaluate.units import ORDERS
from fxlrp.shipped.checkpoints import load_demo
from tests.evaluate.test_perturbation import IDS, UNK, Votes


class Mean(Votes):
    """Class 1 is the mean vote of the tokens that the mask leaves, so that a word dropped is none set to zero."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(self.weight.weight)
        mean = (self.weight(input_ids)[..., 0] * mask).sum(1) / mask.sum(1) - 0.4
        return torch.stack([torch.zeros_like(mean), mean], 1)


@pytest.fixture(scope="module")
def votes() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Votes().eval(), "gradient")


@pytest.fixture(scope="module")
def mean() -> fxlrp.ConvertedModel:
    return fxlrp.convert(Mean().eval(), "gradient")


OPTIONS = {"counts": (0, 1, 2), "min_words": 2}


@pytest.mark.parametrize("delete", ["zero", "drop", UNK])
def test_deletion_by_hand(votes: fxlrp.ConvertedModel, delete: str | int) -> None:
    """Votes 1, 4, -3, 2 (right: without the 4 their sum is 0) and -3, 1/2, -1, -1: wrong, by 4.5."""
    ids = torch.tensor([[1, 6, 4, 1], [4, 5, 3, 6]])
    ids[1] = torch.tensor([4, 2, 3, 5])  # -3, 2, -1, 0.5: sum -1.5; without the -3, 1.5
    found = WordDeletion(delete=delete, **OPTIONS).run(votes, [(ids, [1, 1])])
    assert found.measured["correct"].tolist() == [True, False]
    assert found.measured["accuracy"].tolist() == [[1, 0, 0], [0, 1, 1]]
    assert found.statistics == {"correct -1": 0, "correct -2": 0, "wrong -1": 1, "wrong -2": 1}


def test_one_order_for_both_groups_is_noticed(votes: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ORDERS, "least", ORDERS["most"])
    with pytest.raises(AssertionError):
        test_deletion_by_hand(votes, UNK)


def test_a_dropped_word_is_not_a_zero(mean: fxlrp.ConvertedModel) -> None:
    """Votes 1, 1, 1/2: without a 1 the sum over three is 1/2, the mean of two 3/4; 0.4 is the threshold."""
    inputs = {"input_ids": torch.tensor([[1, 1, 5, 6]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    rows = {
        delete: WordDeletion(delete=delete, **OPTIONS).run(mean, [(inputs, [1])]).measured["accuracy"].tolist()
        for delete in ("zero", "drop")
    }
    assert rows == {"zero": [[1, 1, 0]], "drop": [[1, 1, 1]]}


def test_dropping_that_leaves_the_mask_is_noticed(mean: fxlrp.ConvertedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "dropped", lambda e, gone: e.with_units(e.units.value.masked_fill(gone, UNK)))
    with pytest.raises(AssertionError):
        test_a_dropped_word_is_not_a_zero(mean)


@pytest.mark.parametrize(
    ("mask", "ids", "left"),
    [
        ([[1, 1, 1, 1], [1, 1, 1, 0]], [[5, 4, 1, 2], [6, 2, 3, 2]], [[1, 1, 1], [1, 1, 0]]),
        ([[1, 1, 1, 1], [0, 1, 1, 1]], [[4, 5, 1, 2], [6, 2, 6, 3]], [[1, 1, 1], [0, 1, 1]]),
    ],
)
def test_what_is_left_moves_together(
    mean: fxlrp.ConvertedModel, mask: list[list[int]], ids: list[list[int]], left: list[list[int]]
) -> None:
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    explanation = fxlrp.evaluate.explanation.explain(mean, fxlrp.evaluate.Batch(inputs), 1)
    gone = torch.zeros(2, 4).bool()
    gone[0, 1], gone[1, ids[1].index(2)] = True, True
    kept = [[t for t, m, g in zip(*row, strict=True) if m and not g] for row in zip(ids, mask, gone, strict=True)]
    moved = words.dropped(explanation, gone)
    assert moved["attention_mask"].tolist() == left
    assert [row[m].tolist() for row, m in zip(moved["input_ids"], moved["attention_mask"].bool(), strict=True)] == kept


def test_short_sentences_are_left_out(votes: fxlrp.ConvertedModel) -> None:
    inputs = {"input_ids": IDS[:1].repeat(2, 1), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    found = WordDeletion((0, 1), "zero", min_words=3).run(votes, [(inputs, [1, 1])])
    assert found.measured["used"].tolist() == [True, False]
    assert found["correct -1"] == 0
    assert found["wrong -1"] != found["wrong -1"]  # NaN: there is none


def test_zeroed_embeddings_of_the_shipped_model() -> None:
    """Against a forward pass whose word embeddings are hooked: positions and special tokens stay."""
    torch.set_num_threads(1)
    model, tokenizer = load_demo()
    encoded = tokenizer(["a film of unforgettable warmth", "dull, and far too long"], return_tensors="pt", padding=True)
    lrp = fxlrp.convert(model, "attnlrp")
    explanation = fxlrp.evaluate.explanation.explain(lrp, fxlrp.evaluate.Batch(encoded), 1)
    gone = torch.zeros_like(encoded["input_ids"]).bool()
    gone[0, 4], gone[1, 1:3] = True, True
    hook = model.get_input_embeddings().register_forward_hook(lambda *a: a[-1].masked_fill(gone[..., None], 0))
    with torch.no_grad():
        expected = model(**encoded).logits
    hook.remove()
    assert torch.allclose(words._without_embeddings(explanation, gone), expected, atol=1e-5)
    assert not torch.allclose(explanation.logits(), expected, atol=1e-2)


def test_whole_words_go_together() -> None:
    """Pieces of a word: 'un ##forgettable' is one, whose relevance is the sum."""
    torch.set_num_threads(1)
    model, tokenizer = load_demo()
    text = "an unforgettably ungainly film of warmth"
    encoded = tokenizer([text], return_tensors="pt")
    assert encoded["input_ids"].shape[1] > len(text.split()) + 2
    lrp = fxlrp.convert(model, "attnlrp")
    explanation = fxlrp.evaluate.explanation.explain(lrp, fxlrp.evaluate.Batch(encoded), 1)
    grouped = words.words(explanation.units, encoded)
    assert grouped.relevance.shape == (1, len(text.split()))
    second = explanation.result.relevance[0][[word == 1 for word in encoded.word_ids(0)]]
    assert len(second) > 1
    assert grouped.relevance[0, 1] == pytest.approx(float(second.double().sum()))
    deletion = WordDeletion((0, 1, 2), "drop", min_words=2, whole_words=True)
    found = deletion.run(lrp, [(encoded, [1])])
    assert found.measured["used"].tolist() == [True]
    assert isinstance(encoded, BatchEncoding)


def test_words_of_a_data_set_by_hand(votes: fxlrp.ConvertedModel, capsys: pytest.CaptureFixture[str]) -> None:
    class Letters:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["abcdefg"[i] for i in ids]

    batches = [IDS[:1], IDS[1:]]
    found = representative_words(votes, batches, Letters(), 1, count=3)
    assert [w.text for w in found.for_] == ["g", "c", "b"]  # votes 4, 2, 1
    assert [w.text for w in found.against] == ["e", "d", "f"]
    assert (found.for_[1].count, found.for_[1].mean) == (3, 2)
    assert [w.text for w in representative_words(votes, batches, Letters(), 1, min_count=2).for_] == ["c"]
    found.show()
    assert "+4.000" in capsys.readouterr().out
    assert list(found.to_dataframe()["speaks"]) == ["for"] * 3 + ["against"] * 3
    with pytest.raises(fxlrp.InputError, match="No word occurs"):
        representative_words(votes, batches, Letters(), 1, min_count=9)
    with pytest.raises(fxlrp.InputError, match="Did you mean 'mean'"):
        representative_words(votes, batches, Letters(), 1, by="means")  # type: ignore[arg-type]


def test_means_and_extremes_differ() -> None:
    class Context(Votes):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            values = self.weight(input_ids)[..., 0]
            total = (values * torch.tensor([1.0, 10.0]).double()).sum(1)
            return torch.stack([torch.zeros_like(total), total], 1)

    class Letters:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["abcdefg"[i] for i in ids]

    ids = torch.tensor([[1, 2], [1, 5], [1, 1], [2, 3], [2, 4], [2, 3]])  # 2: 20, 2, 2, 2; 1: 1, 1, 1, 10; 5: 5
    lrp = fxlrp.convert(Context().eval(), "gradient")
    top = {by: representative_words(lrp, ids, Letters(), 1, 2, by).for_ for by in ("extreme", "mean")}
    assert [(w.text, w.largest) for w in top["extreme"]] == [("c", 20), ("b", 10)]
    assert [(w.text, w.mean) for w in top["mean"]] == [("c", 6.5), ("f", 5)]


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"delete": "dorp"}, None, "Did you mean 'drop'"),
        ({"counts": (2, 1)}, None, "rise from 0"),
        ({"counts": (0, 12)}, None, "min_words=10"),
        ({}, (IDS,), "needs the labels"),
        ({"whole_words": True}, (IDS, [1, 1]), "fast tokenizer"),
        ({"delete": "drop", "counts": (4,), "min_words": 4}, (IDS, [1, 1]), "without any token"),
        ({"delete": "drop", "keep": (5,), "counts": (2,), "min_words": 4}, (IDS, [1, 1]), "several lengths"),
    ],
)
def test_errors(votes: fxlrp.ConvertedModel, options: dict[str, object], batch: object, message: str) -> None:
    with pytest.raises(fxlrp.InputError, match=message):
        WordDeletion(**options).run(votes, [batch])


def test_relevance_beats_chance_on_the_votes(votes: fxlrp.ConvertedModel) -> None:
    ids = torch.randint(1, 7, (64, 12), generator=torch.Generator().manual_seed(0))
    labels = (votes.model.weight(ids)[..., 0].sum(1) > 0).long()
    wrong = torch.arange(64) % 4 == 0
    batch = (ids, torch.where(wrong, 1 - labels, labels))
    ours, random = (WordDeletion(order=order).run(votes, [batch]) for order in ("relevance", "random"))
    assert ours["correct -3"] < random["correct -3"] - 0.2
    assert ours["wrong -3"] > random["wrong -3"] + 0.2
    assert Perturbation("random").better() == WordDeletion(order="random").better() == {}
