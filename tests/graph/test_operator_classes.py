"""Operator classes: a new one is one entry, names are converted at the boundary, copies are the class."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.graph.operator_classes import (
    ADD,
    CLASSES,
    CONSTANT,
    LINEAR,
    MATMUL,
    MOVEMENT,
    SHIFT,
    OperatorClass,
    class_name,
    find_class,
    register_class,
)
from fxlrp.graph.operator_table import ABSENT
from fxlrp.graph.operators import OPERATORS, Dependence, Operator, register
from fxlrp.rules import RULES, Cite, Conserves, Operation, rule
from fxlrp.testing import check_rule
from fxlrp.testing.operations import OPERATIONS, Sample

# --- a commit of its own: an operator of a class that fxlrp does not have, and a rule for it -----------------------


@torch.library.custom_op("fxlrp_tests::whiten", mutates_args=())
def whiten(x: Tensor) -> Tensor:
    """x [batch, n] over its norm."""
    return x / x.norm(dim=-1, keepdim=True)


whiten.register_fake(torch.empty_like)


def introduce() -> None:
    whitening = register_class(OperatorClass("whitening"))
    register(torch.ops.fxlrp_tests.whiten.default, Operator(Dependence.GENERAL, whitening, terms=(0,)))
    OPERATIONS[whitening] = (Sample("whiten", torch.ops.fxlrp_tests.whiten.default, ((2, 4),)),)

    @rule("whitening", conserves=Conserves.EXACTLY, source=Cite("this test"))
    def whole(op: Operation, x: Tensor) -> Tensor:
        """g_x = y / x g_y, so that R_x = R_y.  x: [batch, n]."""
        held = x.detach()
        y: Tensor = op(held)
        return y + (x - held) * (y / held)

    @whole.reference
    def _(op: Operation, relevance: Tensor, x: Tensor) -> Tensor:
        return relevance


# -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def introduced() -> Iterator[None]:
    tables: list[dict[Any, Any]] = [CLASSES, OPERATORS, OPERATIONS, RULES]
    before = [dict(table) for table in tables]
    introduce()
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


class Whitened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.ops.fxlrp_tests.whiten(self.first(x)))


def _model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Whitened().double().eval(), torch.rand(2, 3, dtype=torch.float64)


@pytest.mark.usefixtures("introduced")
def test_a_new_class_is_one_entry() -> None:
    report = check_rule(RULES["whole"])
    assert report.passed, str(report)
    assert "whiten (whitening)" not in str(report)
    model, x = _model()
    mine = fxlrp.ruleset("conservative").override(whitening="whole")
    lrp = fxlrp.convert(model, mine, example_inputs=x)
    assert ("whitening", "whole", 1) in [(row.pattern, row.rule, row.count) for row in lrp.plan.rows]
    assert "whitening" in str(lrp.plan)
    result = lrp.attribute(x, ledger=True)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


@pytest.mark.usefixtures("introduced")
def test_an_operation_of_a_new_class_is_refused_without_a_rule() -> None:
    model, x = _model()
    with pytest.raises(
        fxlrp.UncoveredOperatorError, match=r"(?s)whiten \(whitening\).*override\(whitening='gradient'\)"
    ):
        fxlrp.convert(model, "conservative", example_inputs=x)


@pytest.mark.usefixtures("introduced")
def test_a_rule_for_another_class_is_refused_for_the_new_one() -> None:
    with pytest.raises(fxlrp.RulesetError, match=r"'taylor' is for softmax, not for 'whitening'\. Rules .*whole"):
        fxlrp.ruleset("conservative").override(whitening="taylor")


def test_no_ruleset_knows_a_class_before_it_is_registered() -> None:
    with pytest.raises(fxlrp.RulesetError, match="cannot override 'whitening'"):
        fxlrp.ruleset("conservative").override(whitening="gradient")
    model, x = _model()
    with pytest.raises(fxlrp.UncoveredOperatorError, match=r"fxlrp\.graph\.operators\.register"):
        fxlrp.convert(model, "conservative", example_inputs=x)


def test_a_rule_on_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(fxlrp.RulesetError, match=r"no operator class 'softmacks'\. Did you mean 'softmax'"):
        rule("softmacks", conserves=Conserves.EXACTLY, source=Cite("nobody"))


def test_rules_stand_on_classes_whatever_names_they_were_given() -> None:
    assert all(isinstance(each, OperatorClass) for known in RULES.values() for each in known.on)
    assert find_class("conv") == find_class("convolution") == CLASSES["convolution"]
    assert class_name("norm.scale") == "norm.scale"


def test_a_class_without_samples_cannot_be_checked() -> None:
    bare = OperatorClass("bare")
    unsampled = fxlrp.rules.Rule("unsampled", (bare,), lambda op, x: op(x), Conserves.EXACTLY, Cite("nobody"))
    with pytest.raises(fxlrp.FxlrpError, match="no sample of class 'bare'"):
        check_rule(unsampled)


def test_every_class_that_rules_can_stand_on_has_samples() -> None:
    # Whatever there is, sums of it, and what is told by its place in a graph alone.
    words = {"any", "affine", "prediction", "divisor", "division"}
    assert {name for name, known in CLASSES.items() if known.ruled} - words == {each.name for each in OPERATIONS}


def test_what_is_said_of_the_wider_class_holds() -> None:
    assert SHIFT.lineage == (SHIFT, ADD)
    assert SHIFT.within(ADD)
    assert not ADD.within(SHIFT)
    sums = RULES["normalised_add"]
    assert ADD in sums.on
    assert sums.fits(SHIFT)
    assert not sums.fits(MOVEMENT)


def test_what_no_rule_can_stand_on_cannot_be_named() -> None:
    assert not MATMUL.ruled
    assert not CONSTANT.ruled
    with pytest.raises(fxlrp.RulesetError, match="cannot override 'constant'"):
        fxlrp.ruleset("conservative").override(constant="gradient")


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_class_is_the_class(copied: Any) -> None:
    assert copied(SHIFT) == SHIFT
    assert {copied(SHIFT)} == {SHIFT}
    assert SHIFT != ADD


def test_an_operator_of_a_class_by_name_is_refused() -> None:
    with pytest.raises(fxlrp.RulesetError, match="is an OperatorClass, not 'linear'"):
        Operator(Dependence.FACTORS, "linear", factors=(0, 1))  # type: ignore[arg-type]
    assert Operator(Dependence.FACTORS, LINEAR, factors=(0, 1)).category == LINEAR


def test_every_name_of_the_table_is_an_operator_of_this_torch() -> None:
    assert ABSENT == []
