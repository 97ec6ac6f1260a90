"""One architecture of the census: built, run, exported, converted, and its ledgers closed, each step recorded."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import fxlrp
from benchmarks.architectures import Architecture
from benchmarks.examples import example
from benchmarks.measure import Timed
from fxlrp.capture import capturing
from fxlrp.capture.process import quiet
from fxlrp.graph.operators import is_float, packet
from fxlrp.planning.plan import Plan

RULESETS = ("conservative", "attnlrp", "ali2022")
#: Largest gap of a ledger relative to the explained value, and largest relative difference of the outputs: where all
#: of the model is in float64 (rounding of deep sums), and where some of it is in float32 (whose epsilon is 1.2e-7).
GAPS = {torch.float64: 1e-6, torch.float32: 1e-4}
VALUES = {torch.float64: 1e-9, torch.float32: 1e-4}
SEED = 0  # a model that draws random numbers in eval mode (hashes) draws the same ones on both sides
OTHERS = 2
STEPS = ("builds", "runs", "exports", "converts", "values", "ledger")


@dataclass
class Record:
    """What became of one architecture. ``reached`` is the last step that succeeded ('' if not even the first)."""

    task: str
    model_type: str
    variant: int = 0
    reached: str = ""
    reason: str = ""
    parameters: int = 0
    nodes: int = 0
    export_s: float = 0.0
    convert_s: float = 0.0
    lowest: str = ""
    values: float = float("nan")
    gaps: dict[str, float] = field(default_factory=dict)
    captured: str = ""
    decided: list[str] = field(default_factory=list)  # what decides in a recording, and where
    by_integers: bool = True  # that no float does
    anew: int = 0  # captures that OTHERS more inputs of the same structure took
    operators: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is the record of."""
        return self.task, self.model_type, self.variant

    @property
    def passes(self) -> bool:
        """Whether it went through every step."""
        return self.reached == STEPS[-1]

    @property
    def runs(self) -> bool:
        """Whether the model itself runs: those are what coverage is counted over."""
        return self.reached in STEPS[1:]


def examine(record: Record, save: Callable[[Record], None]) -> None:
    """Fill in ``record`` step by step; ``save`` is called after each, so that a time limit keeps the steps before."""
    torch.set_num_threads(1)
    try:
        for step in _steps(record):
            record.reached = step
            save(record)
    except Exception as error:  # whatever a model raises is the census's result
        record.reason = reason(error)
    save(record)


def _steps(record: Record) -> Iterator[str]:
    torch.manual_seed(SEED)
    with quiet():
        model = Architecture(record.task, record.model_type).build(variant=record.variant)
        record.parameters = sum(p.numel() for p in model.parameters())
    yield "builds"
    with quiet(), torch.no_grad():
        inputs = example(model, variant=record.variant)
        # On a CPU torch's fused kernel misreads float32 masks beside float64 queries.
        torch.manual_seed(SEED)
        with sdpa_kernel(SDPBackend.MATH):
            expected = model(**inputs)
    if not all(bool(torch.isfinite(t).any()) and not bool(torch.isnan(t).any()) for t in _floats(expected)):
        raise ValueError("the model's own output is not finite")
    yield "runs"
    torch.manual_seed(SEED)
    with _timed(record), warnings.catch_warnings():
        warnings.simplefilter("ignore", fxlrp.RetraceWarning)
        lrp = fxlrp.convert(model, RULESETS[0], strict=True)
        captured = lrp.conversion.captured(inputs)
    yield "exports"
    start = time.perf_counter()
    conversions = {name: lrp.with_ruleset(name) for name in RULESETS}
    graph = captured.program.graph
    record.nodes = len(graph.nodes)
    record.captured = "recorded" if captured.program.recorded is not None else "exported"
    dependent = [n for n in graph.nodes if n in captured.structure.dependent and is_float(n)]
    lowest = torch.float64 if all(_exact(n) for n in dependent) else torch.float32
    record.lowest = str(lowest).removeprefix("torch.")
    for conversion in conversions.values():
        _ = conversion.plan
    record.convert_s += time.perf_counter() - start
    record.operators = operators(conversions[RULESETS[0]].plan)
    if captured.program.decisions is not None:
        record.decided = [_short(each) for each in captured.program.decisions.said]
        record.by_integers = captured.program.decisions.by_integers
        record.anew = _anew(lrp, model, record.variant)
    yield "converts"
    record.values = _compare(conversions[RULESETS[0]], inputs, expected)
    # A model's constants may be made in float32 on the way, and rounded otherwise by the exporter.
    rounding = torch.float64 if all(_exact(n) for n in graph.nodes) else torch.float32
    if not record.values <= VALUES[rounding]:
        raise ValueError(f"the outputs differ by {record.values:.1e}")
    yield "values"
    for name, conversion in conversions.items():
        torch.manual_seed(SEED)
        ledger = conversion.attribute(inputs, ledger=True).ledger
        relative = torch.where(ledger.gap == 0, 0.0, ledger.gap.abs() / ledger.explained.abs())
        record.gaps[name] = float(relative.max())
    open_ = {name: gap for name, gap in record.gaps.items() if not gap <= GAPS[lowest]}
    if open_:
        raise ValueError("ledger open: " + ", ".join(f"{name} {gap:.1e}" for name, gap in open_.items()))
    yield "ledger"


def _anew(lrp: fxlrp.ConvertedModel, model: nn.Module, variant: int) -> int:
    """How often the model is captured anew for other words, pictures and sounds of the same sizes and structure."""
    before = lrp.captures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxlrp.RetraceWarning)
        for seed in range(1, 1 + OTHERS):
            with quiet():
                inputs = example(model, seed, variant)
            torch.manual_seed(SEED)
            lrp.conversion.captured(inputs)
    return lrp.captures - before


def _short(decision: str) -> str:
    """What decides, and the file without its folders."""
    what, _, where = decision.rpartition(" at ")
    return f"{what}, {where.rsplit('/', 1)[-1]}"


def operators(plan: Plan) -> list[str]:
    """The operators that carry relevance."""
    carrying = [node for node in plan.carrying if node.op == "call_function"]
    return sorted({getattr(packet(node.target), "__name__", "") for node in carrying})


def _exact(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.dtype in (torch.float64, torch.complex128)


def _floats(outputs: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


def _compare(lrp: nn.Module, inputs: Mapping[str, Any], expected: Any) -> float:
    torch.manual_seed(SEED)
    with torch.no_grad():
        got = lrp(**inputs)
    pairs = zip(_floats(got), _floats(expected), strict=True)
    return max(_difference(a.double(), b.double()) for a, b in pairs)


def _difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|, where equal infinities do not differ."""
    same = a == b
    size = b[torch.isfinite(b)].abs().max()
    return float((torch.where(same, 0.0, a - b).abs().max() / size.clamp_min(1e-300)).nan_to_num(float("inf")))


@contextmanager
def _timed(record: Record) -> Iterator[None]:
    """Tells the exporter's time from ours."""
    start = time.perf_counter()
    with mock.patch.object(capturing, "export", Timed(capturing.export)) as export:
        try:
            yield
        finally:
            record.export_s = export.seconds
    record.convert_s = time.perf_counter() - start - record.export_s


def reason(error: Exception) -> str:
    """One line: the error and, unless it is fxlrp's own, the innermost place it came from."""
    text = " ".join(str(error).split())[:600]
    if isinstance(error, fxlrp.FxlrpError):
        return f"{type(error).__name__}: {text}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = last.filename.split("site-packages/")[-1].rsplit("/", 3)
    return f"{type(error).__name__}: {text} [{'/'.join(place[-3:])}:{last.lineno}]"
