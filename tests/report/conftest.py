"""Checkpoints that several test files share, written once per session."""

from pathlib import Path

import pytest

from tests.report.checkpoints import write_classifier, write_language_model


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language-model"))
