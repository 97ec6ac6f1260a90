"""The data of the experiments: sentences of SST-2 from its folder, canvases of digits drawn on the spot."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fxlrp.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared/data/sst2"
BATCH = 32


def sentences(folder: Path, count: int | None) -> list[tuple[str, int]]:
    """Sentences and labels of SST-2's dev set, shortest first, so that batches hold little padding.

    Raises :class:`InputError` where the folder has no ``dev.tsv``.
    """
    path = folder / "dev.tsv"
    if not path.is_file():
        raise InputError(
            f"'{folder}' holds no dev.tsv of SST-2, which is not part of fxlrp: get it from GLUE and name its folder "
            "with --sst2 FOLDER, or leave the experiments on text out: python -m benchmarks.papers chefer"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["sentence"], int(row["label"])) for row in csv.DictReader(file, delimiter="\t", quoting=3)]
    return sorted(rows[:count], key=lambda row: len(row[0].split()))


def text_batches(tokenizer: Any, rows: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Batches of ids, mask and labels."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        encoded = tokenizer([text for text, _ in part], padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        yield {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in part])}
