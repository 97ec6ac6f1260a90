"""Ali et al. 2022: sentences that come back, and go, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.data import sentences, text_batches
from benchmarks.papers.experiment import Column, Experiment, Method
from fxlrp.evaluate import ali2022_activation, ali2022_pruning
from fxlrp.shipped.checkpoints import load_demo


def experiment(sst2: Path, count: int | None) -> Experiment:
    """Tables 3 and 4 of the paper for SST-2."""
    model, tokenizer = load_demo()
    unknown: int = tokenizer.unk_token_id
    activation = ali2022_activation(unknown)
    pruning = ali2022_pruning(unknown)

    def build() -> tuple[Any, Sequence[Any]]:
        return model, list(text_batches(tokenizer, sentences(sst2, count)))

    return Experiment(
        key="ali",
        title="XAI for Transformers: activation and pruning",
        source="Ali et al. 2022, ICML, section 5.2",
        url="https://arxiv.org/abs/2202.07304",
        theirs="a BERT-like model of 3 self-attention blocks on SST-2, among other data sets",
        ours="the shipped BERT (2 blocks, hidden 128, no pretraining), SST-2's dev sentences",
        methods=(
            Method("random", None),
            Method("rollout", "rollout"),
            Method("gradient x input", "gradient"),
            Method("LRP (AH)", "ali2022-ah"),
            Method("LRP (LN) (for comparison)", "ali2022-ln"),
            Method("LRP (AH + LN)", "ali2022"),
            Method("AttnLRP", "attnlrp"),
        ),
        columns=(
            Column("AUAC", activation, "auac"),
            Column("AU-MSE", pruning, "au_mse", larger=False),
        ),
        steps=(
            ("random", "rollout"),
            ("rollout", "gradient x input"),
            ("gradient x input", "LRP (AH)"),
            ("LRP (AH)", "LRP (AH + LN)"),
        ),
        ordered=("AUAC", "AU-MSE"),
        build=build,
        remarks=(
            "The paper's numbers for SST-2 could not be looked up when this page was made, so that they are "
            "left out; its order is that of its tables and text. AttnLRP and LRP (LN) are not part of it.",
            "What does not reproduce: LRP (AH) does not beat gradient x input in AUAC. In this model of two blocks "
            "the two parts serve different ends: in AUAC, LRP (LN) alone does nearly what LRP (AH + LN) does, in "
            "AU-MSE LRP (AH) alone does.",
        ),
    )
