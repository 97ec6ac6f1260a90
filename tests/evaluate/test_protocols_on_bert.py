"""Every protocol on the classifier that is shipped with fxlrp: relevance beats chance; tables and plots are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxlrp
from fxlrp.evaluate import (
    AreaBetween,
    Conservation,
    Eraser,
    LeaveOneOut,
    ParameterRandomisation,
    Perturbation,
    Protocol,
    RankCorrelation,
    Robustness,
    TokenF1,
    WordDeletion,
)
from fxlrp.shipped.checkpoints import load_demo

#: Not too clear: where the model is certain, no single word matters any more, and leaving one out says nothing.
SENTENCES = {
    "a touching film in places , though not from its first scene to its last": 1,
    "the plot is simple enough , but the jokes come at us one by one": 0,
    "it runs for two hours in which little happens , with energy now and then": 1,
    "i have seen it all before , and so have most of those who go": 0,
    "one of the stories that we have come to see again this year": 1,
    "there are two hours of this , and the end is a long way": 0,
    "the music is a treat , the rest is what one would expect of it": 1,
    "it is not as funny as the first one and not as sad": 0,
}


@pytest.fixture(scope="module")
def demo() -> tuple[Any, ...]:
    torch.set_num_threads(1)
    model, tokenizer = load_demo()
    encoded = tokenizer(list(SENTENCES), return_tensors="pt", padding=True)
    marked = (encoded["input_ids"] % 3 == 0).long()
    lrp = fxlrp.convert(model, "attnlrp")
    keep = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    return lrp, (encoded, torch.tensor(list(SENTENCES.values())), marked), tokenizer.unk_token_id, keep


def protocols(lrp: fxlrp.ConvertedModel, unknown: int, keep: tuple[int, ...]) -> dict[str, tuple[Protocol, str]]:
    """One of each, with a word on its plot's axes."""
    return {
        "area": (AreaBetween(replace=unknown, keep=keep), "fraction"),
        "eraser": (Eraser(replace=unknown, keep=keep), "most relevant"),
        "one out": (LeaveOneOut(unknown, keep=keep), "Spearman"),
        "deletion": (WordDeletion(whole_words=True), "words deleted"),
        "f1": (TokenF1((1, 3, 5), keep=keep), "taken"),
        "agreement": (RankCorrelation({"ali2022": lrp.with_ruleset("ali2022")}, keep=keep), "Spearman"),
        "robustness": (Robustness(unknown, draws=2, keep=keep), "Spearman"),
        "randomised": (ParameterRandomisation(keep=keep), "randomised"),
        "conservation": (Conservation(), "explained output"),
    }


NAMES = list(protocols(fxlrp.convert(torch.nn.Identity().eval()), 0, ()))


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_gives_numbers_a_table_and_a_plot(
    demo: tuple[Any, ...], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    lrp, batch, unknown, keep = demo
    protocol, axis = protocols(lrp, unknown, keep)[name]
    found = protocol.run(lrp, [batch], resume=tmp_path)
    again = protocol.run(lrp, [batch], resume=tmp_path)
    assert str(again.statistics) == str(found.statistics)
    assert {title for title in protocol.better() if "ledger" not in title} <= set(found.statistics)
    found.show()
    assert type(protocol).__name__ in capsys.readouterr().out
    figure = found.plot()
    assert axis in figure.axes[0].get_xlabel()
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_relevance_beats_chance(demo: tuple[Any, ...]) -> None:
    """A random order has an area of 0 between its curves, and chance correlates with nothing."""
    lrp, batch, unknown, keep = demo
    assert AreaBetween(replace=unknown, keep=keep).run(lrp, [batch])["abpc"] > 0.5
    eraser = Eraser(replace=unknown, keep=keep).run(lrp, [batch])
    assert eraser["comprehensiveness"] > 0.2 > eraser["sufficiency"] + 0.1
    assert LeaveOneOut(unknown, keep=keep).run(lrp, [batch])["spearman"] > 0.5
    ours, random = (WordDeletion(order=o, whole_words=True).run(lrp, [batch]) for o in ("relevance", "random"))
    assert ours["correct -3"] < random["correct -3"] - 0.3
    back = {order: Perturbation(order, "add", replace=unknown, keep=keep, of="label") for order in ("most", "random")}
    areas = {order: protocol.run(lrp, [batch]).auac for order, protocol in back.items()}
    assert areas["most"] > areas["random"] + 0.1
    randomised = ParameterRandomisation(keep=keep).run(lrp, [batch])
    assert abs(randomised["|last|"]) < 0.3


def test_relevance_turned_round_is_noticed(demo: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    attribute = fxlrp.ConvertedModel.attribute

    def turned(self: fxlrp.ConvertedModel, *args: object, **options: object) -> fxlrp.Attribution:
        result = attribute(self, *args, **options)
        result.relevance.neg_()
        return result

    monkeypatch.setattr(fxlrp.ConvertedModel, "attribute", turned)
    with pytest.raises(AssertionError):
        test_relevance_beats_chance(demo)
