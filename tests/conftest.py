"""One thread, so that runs are comparable, the suite's Hypothesis profile, checkpoints written once per session,
and registries as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# torch keeps what it found out about an operator's outputs, and computes it twice to be sure. Small models repeat no
# operator often enough for that to pay: without it an export takes a fifth to a third less, and gives the same graph.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

import pytest
import torch
from hypothesis import HealthCheck, settings

from fxlrp.patterns import PATTERNS
from fxlrp.rules import RULES
from tests.support.checkpoints import write_classifier, write_language_model

torch.set_num_threads(1)
settings.register_profile(
    "suite",
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language-model"))


@pytest.fixture
def tables_restored() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    rules, patterns = dict(RULES), {name: list(group) for name, group in PATTERNS.items()}
    yield
    for table, before in ((RULES, rules), (PATTERNS, patterns)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]
