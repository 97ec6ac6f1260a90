"""What every registered rule owes, derived from its declaration: registering a rule is enough to test it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, visible
from fxlrp.graph.operator_classes import ANY
from fxlrp.rules.operation import Operation, Reference
from fxlrp.rules.rule import Conserves, Message, Rule
from fxlrp.testing.operations import OPERATIONS, Sample

MESSAGES = (Message.GRADIENT, Message.RELEVANCE)
TOLERANCE = 1e-9  # relative to the size of the terms of a sum
SHAPES = re.compile(r"\[.*\]|\b[Aa]ny shape\b|\bsame shape\b|\bshape")


@dataclass(frozen=True)
class RuleReport:
    """What :func:`check_rule` found: ``failures`` in words, with operation and seed, and how many were tried."""

    rule: str
    operations: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept, on at least one operation."""
        return not self.failures and self.operations > 0

    def raise_if_failed(self) -> None:
        """Raise :class:`fxlrp.FxlrpError` with the report's text unless the check passed."""
        if not self.passed:
            raise FxlrpError(str(self))

    def __str__(self) -> str:
        verdict = "keeps its promises" if self.passed else "BREAKS its promises"
        head = f"rule '{self.rule}' {verdict} ({self.operations} operations tried)"
        return visible("\n  ".join([head, *self.failures]))


def check_rule(rule: Rule, seeds: Iterable[int] = (0, 1, 2), parameters: Mapping[str, Any] | None = None) -> RuleReport:
    """Check one rule on small random operations of every class it stands on, with ``parameters`` (else its defaults).

    Of each operation y = f(x1..xn) and a random message, once a gradient g_y (unless the rule takes relevance alone)
    and once relevance R_y:

    - the surrogate's value is the operation's, bit for bit (unless the rule says that it changes it);
    - sum of x g_x (or R_x) over live operands and additive constants = sum of y g_y (or R_y) (``EXACTLY``), or less
      the declared leak (``WITH_LEAK``), to 1e-9 of the terms' size; a rule that conserves ``NOTHING`` passes none; of
      one that conserves ``DIFFERENCES`` the same holds of (x - x_ref) g_x and (y - y_ref) g_y for another draw of x;
    - x g_x, and R_x, agree with the rule's slow reference given R_y = y g_y.

    And the rule states a source, a formula and shapes. Raises :class:`fxlrp.RulesetError` for unknown
    parameters, :class:`fxlrp.FxlrpError` for a class of which there is no sample.
    """
    bound = rule.bind(parameters or {})
    failures = list(_documentation(rule))
    categories = OPERATIONS if ANY in rule.on else rule.on
    tried = 0
    for category in categories:
        if category not in OPERATIONS:
            raise FxlrpError(
                f"There is no sample of class '{category}' to check a rule on: give one, as in "
                "fxlrp.testing.operations.OPERATIONS[category] = (Sample(name, code, shapes),)."
            )
        for sample in OPERATIONS[category]:
            for seed in seeds:
                tried += 1
                for kind in _messages(rule):
                    place = f"{sample.name} ({category}), seed {seed}, {kind.value}"
                    failures.extend(f"{place}: {fault}" for fault in _faults(rule, sample, seed, bound, kind))
    return RuleReport(rule.name, tried, tuple(failures))


def _messages(rule: Rule) -> tuple[Message, ...]:
    """The messages that a rule is checked in: both, unless it takes relevance alone or compares with a reference."""
    if rule.compares:
        return MESSAGES[:1]
    return MESSAGES if rule.message is Message.GRADIENT else MESSAGES[1:]


def _documentation(rule: Rule) -> Iterable[str]:
    if not ({"=", "detach"} & set(re.findall(r"=|detach", rule.doc))):
        yield "its docstring states no formula"
    if not SHAPES.search(rule.doc):
        yield "its docstring mentions no shapes"
    if not rule.source.work:
        yield "it states no source"
    if not rule.references:
        yield "it has no slow reference"
    if rule.message is Message.GRADIENT and (rule.conserves is Conserves.WITH_LEAK) != (rule.leak is not None):
        yield "it declares a leak without a formula, or a formula without a leak"


def _faults(rule: Rule, sample: Sample, seed: int, parameters: Mapping[str, Any], kind: Message) -> Iterable[str]:
    operation, drawn = sample.draw(seed)
    if rule.compares:
        others = sample.draw(seed + 500)[1]
        elsewhere = tuple(o.detach() if live else x for o, x, live in zip(others, drawn, operation.live, strict=True))
        operation = replace(operation, reference=Reference(operation, elsewhere))
    counted = [i for i, live in enumerate(operation.live) if live or i in operation.sources]
    operands = [
        x.detach().requires_grad_() if i in counted and isinstance(x, Tensor) else x for i, x in enumerate(drawn)
    ]
    with torch.no_grad():
        expected = operation(*drawn)
    value = rule.apply(kind, operation, *operands, **parameters)
    expected = (expected if rule.keeps_value else value).detach()
    if not torch.equal(value, expected):
        yield f"the value is off by {float((value - expected).detach().abs().max()):.1e}"
    if rule.conserves is Conserves.NOTHING:
        if value.requires_grad:
            yield "it promises to pass nothing on, but its value is connected"
        return
    rng = torch.Generator().manual_seed(seed + 1000)
    gradient = torch.randn(value.shape, generator=rng, dtype=value.dtype)
    message = gradient if kind is Message.GRADIENT else expected * gradient
    arrived = expected * gradient
    leaves = {i: operands[i] for i in counted if isinstance(operands[i], Tensor)}
    grads = torch.autograd.grad(value, list(leaves.values()), message, allow_unused=True)
    scale = {i: x.detach() if kind is Message.GRADIENT else torch.ones_like(x) for i, x in leaves.items()}
    if operation.reference is not None:
        there = operation.reference.operands
        scale = {i: torch.where(x == there[i], 0.0, x - there[i]).detach() for i, x in leaves.items()}
        arrived = (expected - operation.reference.value) * gradient
    relevance = {
        i: torch.zeros_like(x) if g is None else scale[i] * g for (i, x), g in zip(leaves.items(), grads, strict=True)
    }
    if rule.conserves is not Conserves.WITH_LEAK or rule.leak is not None:
        yield from _conservation(rule, operation, operands, expected, gradient, arrived, relevance, parameters)
    if sample.referenced:
        yield from _reference(rule, operation, drawn, arrived, relevance, parameters)


def _conservation(
    rule: Rule,
    operation: Operation,
    operands: list[Any],
    y: Tensor,
    message: Tensor,
    incoming: Tensor,
    relevance: Mapping[int, Tensor],
    parameters: Mapping[str, Any],
) -> Iterable[str]:
    leak = torch.zeros(())
    if rule.leak is not None:
        with torch.no_grad():
            leak = rule.leak(operation, y, message, *operands, **parameters).sum()
    arrived, passed = incoming.sum(), torch.stack([r.sum() for r in relevance.values()]).sum()
    leak = leak.detach()
    gap = float((arrived - passed - leak).detach().abs())
    size = float(incoming.detach().abs().sum() + sum(r.abs().sum() for r in relevance.values()))
    if not gap <= TOLERANCE * size:
        account = f"{float(arrived):.6g} arrived, {float(passed):.6g} passed on, {float(leak):.6g} leaked"
        yield f"conserves {rule.conserves.name}: {account}"


def _reference(
    rule: Rule,
    operation: Operation,
    operands: tuple[Any, ...],
    arrived: Tensor,
    relevance: Mapping[int, Tensor],
    parameters: Mapping[str, Any],
) -> Iterable[str]:
    for reference in rule.references:
        with torch.no_grad():
            slow = reference(
                operation,
                arrived,
                *(x.detach() if isinstance(x, Tensor) else x for x in operands),
                **parameters,
            )
        # References of linear maps give the relevance of the first operand alone, the others that of each
        # operand in order.
        for index, wanted in enumerate(slow if isinstance(slow, tuple) else (slow,)):
            if index not in relevance:
                continue
            error = float((relevance[index] - wanted).abs().max())
            if not error <= TOLERANCE * float(1 + wanted.abs().max()):
                yield f"the relevance passed on differs from the reference by {error:.1e}"
