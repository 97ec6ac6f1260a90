"""Arras et al. 2017: words deleted from sentences that a recurrent network gets right, and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.data import sentences, text_batches
from benchmarks.papers.experiment import Column, Experiment, Method
from fxlrp import shipped
from fxlrp.evaluate import WordDeletion


def experiment(sst2: Path, count: int | None) -> Experiment:
    """The paper's figure 2, for one and for five deleted words."""

    def build() -> tuple[Any, Sequence[Any]]:
        model, tokenizer = shipped.sentiment_bilstm()
        return model, list(text_batches(tokenizer, sentences(sst2, count)))

    deletion = WordDeletion()
    return Experiment(
        key="arras",
        title="LRP for recurrent networks: word deletion",
        source="Arras et al. 2017, WASSA, section 4.3 (figure 2; the paper prints no table)",
        url="https://arxiv.org/abs/1706.07206",
        theirs="a bi-directional LSTM with 60 units on SST (five classes), test sentences of at least 10 words",
        ours="the shipped bi-directional LSTM with 60 units on SST-2's two classes, dev sentences of at least 10 words",
        methods=(
            Method("random", None),
            Method("sensitivity", "gradient-sensitivity"),
            Method("gradient x input", "gradient"),
            Method("LRP", "arras2017"),
        ),
        columns=tuple(
            Column(f"{group}, {n} deleted", deletion, f"{group} -{n}", larger=group == "wrong")
            for group in ("correct", "wrong")
            for n in (1, 3, 5)
        ),
        steps=(("random", "gradient x input"), ("gradient x input", "LRP")),
        ordered=tuple(f"{group}, {n} deleted" for group in ("correct", "wrong") for n in (1, 3, 5)),
        build=build,
    )
