"""The page on property tests, followed literally: healthy models pass wherever a ruleset fits, wrong rules fail."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.errors import FxlrpError
from fxlrp.rules import RULES, Cite, Conserves, Operation, rule
from fxlrp.rules.primitives import scale_message
from tests.docs import pages

PAGE = pages.ROOT / "docs" / "how-to" / "test-your-architecture.md"


class Attention(nn.Module):
    """Token ids [batch, tokens] through two heads of attention, with norm and skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        h = self.norm(x)
        scores = self.heads(self.q(h)) @ self.heads(self.k(h)).transpose(-1, -2) / 2
        mixed = torch.softmax(scores, -1) @ self.heads(self.v(h))
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(-2))).mean(1))


class Convolutions(nn.Module):
    """Images [batch, 3, 8, 8] through two convolutions, batch norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        return self.head(F.relu(self.second(x)).flatten(1))


#: The model of the page (None) and those that a reader puts in its place, with inputs.
MODELS: dict[str, tuple[type[nn.Module] | None, dict[str, Tensor] | None]] = {
    "mlp": (None, None),
    "attention": (Attention, {"input_ids": torch.arange(10).reshape(2, 5)}),
    "cnn": (Convolutions, {"x": torch.linspace(0, 1, 2 * 3 * 8 * 8).double().sin().reshape(2, 3, 8, 8)}),
}
TESTS = ("test_no_relevance_is_lost", "test_a_second_opinion_agrees")
#: What may be said of each model by way of excuse.
CANNOT = {
    "mlp": "reads attention maps|scores tokens|conserves differences|compares with a reference",
    "attention": "made for images|conserves differences|compares with a reference|takes a whole",
    "cnn": "made for text|reads attention maps|scores tokens|conserves differences|compares with a reference",
}


@cache
def followed(name: str) -> dict[str, Any]:
    """The names that the first two blocks of the page define, the model of the first replaced by this one."""
    first, second = [b.text for b in pages.blocks(PAGE.read_text(encoding="utf-8")) if b.language == "python"][:2]
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(first, namespace)
    model, inputs = MODELS[name]
    if model is not None:
        namespace |= {"MyModel": model, "inputs": inputs}
    exec(second, namespace)
    return namespace


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("test", TESTS)
def test_every_ruleset_passes_or_says_why_not(name: str, test: str) -> None:
    run = followed(name)[test]
    (mark,) = run.pytestmark
    assert mark.args == ("ruleset", fxlrp.rulesets())
    reasons = {}
    for ruleset in fxlrp.rulesets():
        try:
            run(ruleset)
        except pytest.skip.Exception as skipped:
            reasons[ruleset] = str(skipped)
    for ruleset, reason in reasons.items():
        assert re.search(CANNOT[name], reason), reason
        assert f"'{ruleset}'" in reason
    assert len(reasons) <= 20
    assert "deeplift-rescale" in reasons
    assert not {"attnlrp", "conservative", "gradient", "clrp", "epsilon", "smoothgrad"} & {*reasons}


@pytest.fixture
def wrong_rules() -> Iterator[None]:
    """A rule that keeps half of what it promises to pass on, and one that passes all on, but not as its reference."""
    before = dict(RULES)

    @rule("linear", "convolution", conserves=Conserves.EXACTLY, source=Cite("none"))
    def halving(op: Operation, *operands: Tensor) -> Tensor:
        """R_x = x g_x / 2.  x: any shape."""
        return scale_message(op(*operands), torch.tensor(0.5, dtype=torch.float64))

    @rule("linear", "convolution", conserves=Conserves.EXACTLY, source=Cite("none"))
    def differing(op: Operation, *operands: Tensor) -> Tensor:
        """R_x = x g_x.  x: any shape."""
        result: Tensor = op(*operands)
        return result

    @differing.reference
    def _(op: Operation, relevance: Tensor, x: Tensor, *others: Any) -> Tensor:
        return torch.ones_like(x) * relevance.sum() / x.numel()

    halving.reference(differing.references[0])
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("wrong_rules")
@pytest.mark.parametrize("name", MODELS)
def test_a_rule_that_loses_relevance_is_found(name: str) -> None:
    mutant = fxlrp.ruleset("conservative").override(linear="halving")
    with pytest.raises(FxlrpError, match="NOT conserved"):
        followed(name)["test_no_relevance_is_lost"](mutant)


@pytest.mark.usefixtures("wrong_rules")
@pytest.mark.parametrize("name", MODELS)
def test_a_rule_that_is_not_its_reference_is_found(name: str) -> None:
    mutant = fxlrp.ruleset("conservative").override(linear="differing")
    followed(name)["test_no_relevance_is_lost"](mutant)
    with pytest.raises(AssertionError):
        followed(name)["test_a_second_opinion_agrees"](mutant)


def test_random_architectures(tmp_path: Path) -> None:
    """The page's Hypothesis test runs as it stands, in a folder with its ruleset, and has no deadline."""
    namespace: dict[str, Any] = {"__name__": "page"}
    found = pages.blocks(PAGE.read_text(encoding="utf-8"))
    (written,) = [block for block in found if block.title]
    (tmp_path / written.title).write_text(written.text, encoding="utf-8")  # type: ignore[operator]
    exec([block.text for block in found if block.language == "python"][-1], namespace)
    random_test = namespace["test_my_ruleset"]
    assert random_test._hypothesis_internal_use_settings.deadline is None
    with contextlib.chdir(tmp_path):
        random_test()
        namespace["test_what_was_found_once"]()
