"""One ruleset on one network in every type: does its ledger close, is it finite, how far from float64, at what cost.

In: a :class:`~benchmarks.real.networks.Network`. Out: a :class:`Record` per ruleset, kept in a file of JSON lines.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks.measure import Clock, Local, paired_ratio, peak
from benchmarks.precision import DTYPES, distance
from benchmarks.real.networks import Network

EXACT = "float64"
HALF = tuple(name for name, dtype in DTYPES.items() if dtype.itemsize < torch.float32.itemsize)
ROUNDS, SLOW = 3, 1.0  # runs of a pair; where one takes more seconds than that there is one pair


@dataclass
class Reading:
    """What one type gave: the ledger's largest gap and the largest relevance, both as shares of the explained value,
    the distance from float64 as a share of the largest relevance, and whether all of it is finite. ``rounded`` is the
    distance from float64 with the same rounded weights and inputs, which is what computing in this type adds.
    ``warned`` holds what the user was warned of.
    """

    gap: float | None
    largest: float
    finite: bool
    distance: float | None = None
    rounded: float | None = None
    warned: list[str] = field(default_factory=list)


@dataclass
class Record:
    """What is known of a ruleset on a network: readings by type and ratios to the plain gradient, or a reason."""

    network: str
    ruleset: str
    readings: dict[str, Reading] = field(default_factory=dict)
    time: float | None = None
    memory: float | None = None
    reason: str = ""

    @staticmethod
    def of(line: str) -> Record:
        """The record of a line of the file."""
        known = json.loads(line)
        known["readings"] = {name: Reading(**reading) for name, reading in known["readings"].items()}
        return Record(**known)


@dataclass(frozen=True)
class Variant:
    """A network in one type, converted, and what it is given."""

    converted: fxlrp.ConvertedModel
    given: Mapping[str, Tensor]

    @staticmethod
    def of(model: nn.Module, given: Mapping[str, Tensor], target: list[int]) -> Variant:
        """Convert the model, and run it until the graph is no longer compared with it."""
        found = Variant(fxlrp.convert(model, "gradient"), given)
        for _ in range(3):
            found.converted.attribute(given, target=target)
        return found


@dataclass(frozen=True)
class Prepared:
    """A network in every type, as it is when it is loaded in it, and in float64 with the weights and inputs that each
    type leaves; and the plain gradient in float32.
    """

    network: Network
    target: list[int]
    variants: Mapping[str, Variant]
    plain: Local
    memory: int

    @staticmethod
    def of(network: Network) -> Prepared:
        """Convert the network in each type."""
        model, samples = network.model, network.samples
        with torch.no_grad():
            target = network.logits(model, samples).argmax(-1).tolist()
        wide = copy.deepcopy(model).double()
        variants = {EXACT: Variant.of(wide, cast(samples, torch.float64), target)}
        for name, dtype in DTYPES.items():
            own = model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)
            given = cast(samples, dtype)
            variants[name] = Variant.of(own, given, target)
            if name in HALF:
                wide = copy.deepcopy(own).double()
                variants[_exact(name)] = Variant.of(wide, cast(given, torch.float64), target)
        plain = Local("plain gradient", partial(gradient, network, model, target))
        plain.run()
        return Prepared(network, target, variants, plain, plain.peak())

    def record(self, key: str, name: str) -> Record:
        """Run a ruleset in every type and measure its cost."""
        record = Record(key, name)
        try:
            exact = self._attributed(EXACT, name, ledger=False)[0]
            for dtype in DTYPES:
                record.readings[dtype] = self._reading(dtype, name, exact.relevance)
            record.time, record.memory = self._cost(name)
        except fxlrp.FxlrpError as error:
            record.reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        return record

    def _reading(self, dtype: str, name: str, exact: Tensor) -> Reading:
        try:
            found, reading = self._attributed(dtype, name)
        except fxlrp.errors.NotFiniteError as error:
            return Reading(None, math.inf, False, warned=[str(error)])
        reading.distance = distance(found.relevance, exact)
        if dtype in HALF:
            same_weights = self._attributed(_exact(dtype), name, ledger=False)[0]
            reading.rounded = distance(found.relevance, same_weights.relevance)
        return reading

    def _attributed(self, dtype: str, name: str, ledger: bool = True) -> tuple[fxlrp.Attribution, Reading]:
        lrp = self.variants[dtype].converted.with_ruleset(name)
        ledger = ledger and not lrp.ruleset.compares and lrp.ruleset.readout.accounts
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = self._attribute(lrp, dtype, ledger)
        explained = result.explained.double().abs()
        largest = float((result.relevance.double().abs().flatten(1).amax(1) / explained).max())
        gap = None
        if result.ledger is not None:
            gap = float((result.ledger.gap.abs() / result.ledger.explained.abs()).max())
        warned = [str(each.message) for each in caught if issubclass(each.category, fxlrp.errors.RelevanceWarning)]
        return result, Reading(gap, largest, bool(torch.isfinite(result.features).all()), warned=warned)

    def _attribute(self, lrp: fxlrp.ConvertedModel, dtype: str, ledger: bool) -> fxlrp.Attribution:
        given = self.variants[dtype].given
        options: dict[str, Any] = {}
        if getattr(lrp.ruleset.readout, "kind", "") == "patching":
            options["reference"] = other(given)
        return lrp.attribute(given, target=self.target, outputs=False, ledger=ledger, **options)

    def _cost(self, name: str) -> tuple[float, float]:
        lrp = self.variants["float32"].converted.with_ruleset(name)
        run: Callable[[], object] = partial(self._attribute, lrp, "float32", False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory = peak(run) / self.memory
            contender = Local(name, run)
            rounds = 1 if contender.seconds(Clock.CPU) > SLOW else ROUNDS
            return paired_ratio(self.plain, contender, rounds, Clock.CPU)[0], memory


def _exact(dtype: str) -> str:
    """The name of float64 with weights and inputs that were rounded to a type."""
    return f"{EXACT} of {dtype}"


def gradient(network: Network, model: nn.Module, target: list[int]) -> Tensor:
    """The plain gradient of what is explained at the input, times it."""
    leaf, given = network.plain(model, network.samples)
    logits = network.logits(model, given)
    (found,) = torch.autograd.grad(logits[torch.arange(len(target)), target].sum(), leaf)
    return leaf.detach() * found


def cast(given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs with their floats in ``dtype``."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}


def other(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a ruleset that compares with another run is given: a picture at half its contrast, every third token the
    one before it.
    """
    found = {}
    for name, value in given.items():
        if value.is_floating_point():
            found[name] = 0.5 * value
        elif name == "input_ids":
            found[name] = value.clone()
            found[name][:, 2::3] = value[:, 1:-1:3]
    return found


def load(file: Path) -> dict[tuple[str, str], Record]:
    """The records of a file, by network and ruleset."""
    if not file.exists():
        return {}
    records = map(Record.of, file.read_text(encoding="utf-8").splitlines())
    return {(record.network, record.ruleset): record for record in records}


def run(
    key: str, prepared: Callable[[], Prepared], names: Iterable[str], file: Path, say: Callable[[str], None]
) -> None:
    """Record the rulesets that ``file`` does not hold yet, and append each as soon as it is done."""
    done = load(file)
    todo = [name for name in names if (key, name) not in done]
    if not todo:
        return
    say(f"{key}: converting in float64, {', '.join(DTYPES)}")
    ready = prepared()
    file.parent.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(todo, 1):
        record = ready.record(key, name)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(record)) + "\n")
        say(f"{key} {place}/{len(todo)} {name}: {record.reason or _summary(record)}")


def _summary(record: Record) -> str:
    far = " ".join(f"{name} {each.distance or 0:.1e}" for name, each in record.readings.items())
    return f"{far}, time x{record.time:.2f}, memory x{record.memory:.2f}"
