"""What must hold of any model, asked of a random configuration in one type against the untouched model and autograd.

A :class:`Study` is the model, a copy that fxlrp never sees, and the conversion. Each ``..._holds`` function is one law;
it raises AssertionError where the law is broken.
"""

from __future__ import annotations

import copy
import random
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fxlrp
from fxlrp.testing.checks import float_types, is_double
from tests.support.drawn import Drawn, Inputs, Side, cut

#: In units of the largest entry. Exact where all is float64.
EXACT = 1e-9
#: Where a value is float32: 100 operations forward and back round by 6e-8 each, times the condition of random weights.
ROUNDED = 1e-4
CONSERVING = (
    "attnlrp",
    "cp-lrp",
    "epsilon",
    "conservative",
    "ali2022",
    "ali2022-ln",
    "ali2022-ah",
    "mambalrp",
    "full-lrp",
    "conservative-residual",
    "epsilon-plus",
    "gradient",
)
ATTRIBUTED = ("pixel_values", "input_ids", "decoder_input_ids")
CLASS = 2


class Study:
    """A drawn configuration in one type."""

    def __init__(self, drawn: Drawn, dtype: torch.dtype) -> None:
        self.drawn, self.dtype = drawn, dtype
        self.model = drawn.build(dtype)
        self.untouched = copy.deepcopy(self.model)
        self.given = drawn.inputs(dtype)
        self.rng = Random(f"{drawn.family} {drawn.seed}")

    @cached_property
    def before(self) -> tuple[Tensor, dict[str, Any]]:
        """The user's model before fxlrp saw it: its outputs, and what it holds after such a call."""
        return _logits(self.model, self.given), snapshot(self.model)

    @cached_property
    def lrp(self) -> fxlrp.ConvertedModel:
        """The conversion, which all rulesets share."""
        _ = self.before
        return fxlrp.convert(self.model, "gradient", example_inputs=self.given)

    @cached_property
    def bound(self) -> float:
        """How exact values and relevance are."""
        return EXACT if all(map(is_double, float_types(self.lrp))) else ROUNDED

    @property
    def target(self) -> int | tuple[int, int]:
        """An explained entry that is not the default."""
        return CLASS if self.drawn.head in ("encoder", "vision") else (1, CLASS)

    def attribute(self, rules: str, inputs: Inputs, **options: Any) -> fxlrp.Attribution:
        """The relevance under a ruleset."""
        return self.lrp.with_ruleset(rules).attribute(inputs, **options)

    def default(self, logits: Tensor) -> list[tuple[int, ...]]:
        """The explained entry of each sample without padding: the largest logit, at the last position of texts."""
        if self.drawn.generates:
            return [(logits.shape[1] - 1, int(scores[-1].argmax())) for scores in logits]
        return [tuple(int(i) for i in torch.unravel_index(scores.argmax(), scores.shape)) for scores in logits]


def _logits(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def largest(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """The largest difference, in units of the largest entry of ``expected``, or of ``size``."""
    assert found.shape == expected.shape
    unit = (expected if size is None else size).double().abs().max()
    return float((found.double() - expected.double()).abs().max() / unit)


def size(found: fxlrp.Attribution, name: str) -> Tensor:
    """What relevance is as exact as: of ids it is a sum over features, which may cancel (behind a norm they do)."""
    return torch.stack([found.features.abs().sum(-1).max(), found.inputs[name].abs().max()])


# ------------------------------------------------------------------------------------------------------ gradient
def gradient_holds(study: Study) -> None:
    """`gradient` is x times the untouched model's gradient, feature by feature too, for two targets."""
    for target in (None, study.target):
        explained, parts = by_autograd(study, study.given, target)
        found = study.attribute("gradient", study.given, target=target)
        assert largest(found.explained, explained) <= study.bound
        assert found.inputs.keys() == parts.keys()
        for name, part in parts.items():
            pixels = name == "pixel_values"
            wanted, size = (part, part) if pixels else (part.sum(-1), part.abs().sum(-1))
            assert largest(found.inputs[name], wanted, size) <= study.bound, (name, target)
        assert largest(found.features, next(iter(parts.values()))) <= study.bound, target


class _Lookups(TorchFunctionMode):
    """Rows that are looked up for an input's ids become a leaf of its name; positions and types are no such ids."""

    def __init__(self, given: Inputs, leaves: dict[str, Tensor]) -> None:
        super().__init__()
        self.given, self.leaves = given, leaves

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is not F.embedding:
            return found
        name = next((n for n in ATTRIBUTED if n in self.given and torch.equal(args[0], self.given[n])), None)
        if name is None:
            return found
        assert name not in self.leaves, f"{name} is looked up twice"
        self.leaves[name] = found.detach().requires_grad_()
        return self.leaves[name]


def by_autograd(study: Study, inputs: Inputs, target: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The explained logits [batch], and x * gradient by input: [batch, tokens, hidden], or the image's shape."""
    model, given = copy.deepcopy(study.untouched), dict(inputs)
    leaves: dict[str, Tensor] = {}
    if "pixel_values" in given:
        given["pixel_values"] = leaves["pixel_values"] = given["pixel_values"].clone().requires_grad_()

    with _Lookups(given, leaves):
        logits = model(**given).logits
    if target is None:
        wanted = study.default(logits)
    else:
        wanted = [target if isinstance(target, tuple) else (target,)] * len(logits)
    explained = torch.stack([scores[place] for scores, place in zip(logits, wanted, strict=True)])
    gradients = torch.autograd.grad(explained.sum(), list(leaves.values()))
    parts = {name: (x * g).detach() for (name, x), g in zip(leaves.items(), gradients, strict=True)}
    return explained.detach(), parts


# ------------------------------------------------------------------------------------------- batches and padding
def batches_hold(study: Study) -> None:
    """A batch of three is explained as its three samples are, one by one."""
    for rules in ("attnlrp", study.rng.choice(CONSERVING[1:])):
        together = study.attribute(rules, study.given)
        for i in range(len(together.explained)):
            alone = study.attribute(rules, {name: value[i : i + 1] for name, value in study.given.items()})
            assert largest(alone.explained, together.explained[i : i + 1]) <= study.bound
            for name, found in alone.inputs.items():
                row = together.inputs[name][i : i + 1]
                assert largest(found, row, size(alone, name)) <= study.bound, (rules, name, i)


def padding_holds(study: Study, side: Side) -> None:
    """Padding receives nothing, and real tokens what they receive without it."""
    given = study.drawn.inputs(padding=side)
    rows = given["attention_mask"].bool()
    if reason := study.drawn.own(side, study.dtype):
        assert not _model_stands_padding(study, side), f"this no longer holds: {reason}"
        return
    assert _model_stands_padding(study, side), "the untouched model's outputs depend on padding: find out why"
    padded = study.attribute("attnlrp", given)
    assert bool((padded.inputs["input_ids"][~rows] == 0).all())
    for i, single in enumerate(study.drawn.alone(side)):
        alone = study.attribute("attnlrp", single)
        assert largest(alone.explained, padded.explained[i : i + 1]) <= study.bound
        for name, found in alone.inputs.items():
            row = cut(padded.inputs[name][i : i + 1], rows[i])
            assert largest(found, row, size(alone, name)) <= study.bound, (name, i)


def _model_stands_padding(study: Study, side: Side) -> bool:
    """Whether the untouched model gives real tokens the same logits with padding as without it and without a mask,
    and a gradient that is finite.

    Each is asked of a model that saw nothing before: some keep what they last saw.
    """
    given, singles = study.drawn.inputs(padding=side), study.drawn.alone(side)
    together = _logits(copy.deepcopy(study.untouched), given)
    for i, single in enumerate(singles):
        bare = {name: value for name, value in single.items() if name not in ("attention_mask", "position_ids")}
        alone = _logits(copy.deepcopy(study.untouched), bare)
        row = together[i : i + 1]
        row = row if row.shape == alone.shape else cut(row, given["attention_mask"][i].bool())
        if not largest(row, alone) <= study.bound:  # NaN is a difference
            return False
    _, parts = by_autograd(study, given, None if side == "left" else study.target)
    return all(bool(part.isfinite().all()) for part in parts.values())


# ------------------------------------------------------------------------------- ledgers, outputs, and the model
def ledgers_close(study: Study) -> None:
    """Under rulesets drawn at random, what inputs, constants and leaks hold sums to the untouched model's logit."""
    logits = _logits(study.untouched, study.given)
    explained = torch.stack([scores[p] for scores, p in zip(logits, study.default(logits), strict=True)]).double()
    for rules in study.rng.sample(CONSERVING, 3):
        found = study.attribute(rules, study.given, ledger=True)
        assert found.ledger is not None
        whole = torch.stack([entry.amount.abs() for entry in found.ledger.entries]).sum(0)
        amount = fxlrp.ruleset(rules).seed.amount  # some begin with one whatever the logit is
        wanted = explained if amount is None else torch.full_like(explained, amount)
        assert float(((found.ledger.total - wanted).abs() / whole).max()) <= study.bound, rules
        held = sum(value.double().flatten(1).sum(1) for value in found.inputs.values())
        entered = found.ledger.by_kind()["input"]
        assert float(((held - entered).abs() / whole).max()) <= study.bound, rules


def outputs_hold(study: Study) -> None:
    """The conversion computes what the untouched model computes."""
    expected = _logits(study.untouched, study.given)
    assert largest(study.lrp(**study.given).logits.detach(), expected) <= study.bound
    assert largest(study.attribute("attnlrp", study.given).outputs.logits, expected) <= study.bound


def model_stands(study: Study) -> None:
    """The user's model, and the process's random state, are what they were before fxlrp saw them."""
    outputs, before = study.before
    study.attribute("attnlrp", study.given)
    after = snapshot(study.model)
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    for name, value in before.items():
        stands = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert stands, name
    assert torch.equal(_logits(study.model, study.given), outputs)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a model and its process hold: tensors by value, everything else by its text."""
    found: dict[str, Any] = {
        "random state of torch": torch.get_rng_state(),
        "random state of Python": repr(random.getstate()),
        "random state of numpy": repr(np.random.get_state()),
    }
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            members = value if name in ("_parameters", "_buffers", "_modules") else {"": value}
            for part, each in members.items():
                key = f"{path}.{name}.{part}".strip(".")
                if isinstance(each, Tensor):
                    found[key] = each.detach().clone()
                    found[f"{key}, which"] = (id(each), each.requires_grad, each.grad is None)
                else:
                    found[key] = id(each) if isinstance(each, nn.Module) else repr(each)
    return found
