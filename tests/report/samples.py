"""Attributions made by hand, so that the views are tested apart from the engine that computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.engine.ledger import Entry, Ledger
from fxlrp.results.attribution import Attribution, RulesetInfo

CITATION = "Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers"
URL = "https://arxiv.org/abs/2402.05602"


def info(name: str, *, title: str = "Attention-aware LRP", url: str | None = URL) -> RulesetInfo:
    """A ruleset's identity."""
    return RulesetInfo(name, version="1", hash="3f9a2b77c1d0", title=title, citation=CITATION, url=url)


KINDS = (
    ("bias", False, 37),
    ("norm shift", False, 9),
    ("position embedding", False, 1),
    ("embedding", False, 1),
    ("softmax expansion", True, 4),
)


def ledger(relevance: Tensor, *, gap: float = 0.0, seed: int = 0) -> Ledger:
    """A ledger over `relevance` [batch, ...] with sources of every kind; it is short of `explained` by
    `gap`.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = relevance.shape[0]
    entries = [
        Entry(
            "bert.embeddings.word_embeddings",
            "input",
            relevance.double().reshape(batch, -1).sum(1),
            leak=False,
        )
    ]
    for kind, leak, count in KINDS:
        for n in range(count):
            amount = torch.randn(batch, dtype=torch.float64, generator=generator) / (3 * count**0.5)
            entries.append(
                Entry(f"bert.encoder.layer.{n}.attention.output.{kind.replace(' ', '_')}", kind, amount, leak)
            )
    total = sum((entry.amount for entry in entries), torch.zeros(batch, dtype=torch.float64))
    return Ledger(tuple(entries), total + gap)


def text_attribution(
    tokens: Sequence[Sequence[str]],
    *,
    ruleset: str = "attnlrp",
    layers: int = 0,
    with_ledger: bool = False,
    gap: float = 0.0,
    mask: Tensor | None = None,
    seed: int = 0,
    identity: RulesetInfo | None = None,
    label: str = "positive",
) -> Attribution:
    """An attribution of a batch of token lists of equal length, with values drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(tokens), len(tokens[0]), 6, generator=generator) / 4
    relevance = features.sum(-1)
    book = ledger(relevance, gap=gap, seed=seed) if with_ledger else None
    names = [f"bert.encoder.layer.{n}" for n in reversed(range(layers))]
    return Attribution(
        relevance=relevance,
        inputs={"input_ids": relevance},
        tokens=[list(row) for row in tokens],
        features=features,
        outputs=None,
        target=None,
        explained=relevance.sum(-1).double() if book is None else book.explained,
        ruleset=identity or info(ruleset),
        label=[label] * len(tokens),
        at={name: features + torch.randn(features.shape, generator=generator) / 5 for name in names},
        ledger=book,
        attention_mask=mask,
    )


def float_attribution(relevance: Tensor, name: str = "pixel_values", *, with_ledger: bool = False) -> Attribution:
    """An attribution of a float input, whose relevance has the input's own shape [batch, ...]."""
    book = ledger(relevance) if with_ledger else None
    return Attribution(
        relevance=relevance,
        inputs={name: relevance},
        tokens=None,
        features=relevance,
        outputs=None,
        target=None,
        explained=relevance.reshape(relevance.shape[0], -1).sum(1).double() if book is None else book.explained,
        ruleset=info("conservative", title="Everything homogenised"),
        label=[f"class {n}" for n in range(relevance.shape[0])],
        ledger=book,
    )


TEXT = "a film of un ##forget ##table warmth , though the last act never quite earns it ."
SENTENCE = ["[CLS]", *TEXT.split(), "[SEP]"]
EVIL = "<script>alert(1)</script>"
