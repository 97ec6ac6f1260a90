"""Random graphs for property tests: a Hypothesis strategy of small models, each given as a description.

    @given(graphs())
    def test_ledger_closes(graph):
        check_conservation(graph.module(), "conservative", graph.inputs())

A description is immutable, prints as the Python it stands for, and `RandomGraph.parse` reads that again.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxlrp.errors import InputError, MissingExtraError, nearest
from fxlrp.testing.blocks import FEATURES, OPTIONS, TOKENS
from fxlrp.testing.kinds import KINDS
from fxlrp.testing.weights import realistic

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("hypothesis", "testing") from error

CLASSES, SEEDS = 3, 10
REACH = 4  # how many values back an operand may lie
# Products of products grow: with inputs of scale 1, a value of degree 4 stays below about 100.
HIGHEST_DEGREE = 4
STEP = re.compile(
    r"v\d+ = (?P<kind>\w+)\((?P<operands>\w+(, [vxy]\d*)*)(, option=(?P<option>\d+))?(, seed=(?P<seed>\d+))?"
)


def _check_known(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"Unknown operator kind '{kind}'.{nearest(kind, KINDS)}")


@dataclass(frozen=True)
class Step:
    """One line of a random graph.  operands: names of earlier values ("x", "y", "v1", ...)."""

    kind: str
    operands: tuple[str, ...]
    option: int = 0
    seed: int = 0

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in (("option", self.option), ("seed", self.seed)) if value]
        return f"{self.kind}({', '.join([*self.operands, *settings])})"


@dataclass(frozen=True, repr=False)
class RandomGraph:
    """A small model as a description: step i computes the value "v{i}", all values are [batch, 5, 8].

    The head sums the values that no step has used, takes the mean over tokens and maps it to 3 logits.
    """

    steps: tuple[Step, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """("x",), or ("x", "y") where a step uses the second input."""
        return ("x", "y") if any("y" in step.operands for step in self.steps) else ("x",)

    @property
    def unused(self) -> tuple[str, ...]:
        """The values that feed the head."""
        used = {name for step in self.steps for name in step.operands}
        return tuple(name for name in (*self.input_names, *self._results()) if name not in used)

    @property
    def exact(self) -> bool:
        """False where a step rounds to float32 inside, so that sums close to 1e-5 instead of 1e-9."""
        return all(KINDS[step.kind].exact for step in self.steps)

    def _results(self) -> list[str]:
        return [f"v{number}" for number in range(1, len(self.steps) + 1)]

    def module(self) -> nn.Module:
        """The model: float64, eval mode, parameters at a trained model's scale, equal for equal graphs."""
        with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; `realistic` redraws
            model = _MODELS[len(self.input_names)](self)
        return model.double().eval()

    def inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Standard normal float64 inputs, [batch, 5, 8] each."""
        rng = torch.Generator().manual_seed(seed)
        shape = (batch, TOKENS, FEATURES)
        return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name in self.input_names}

    def code(self) -> str:
        """The model as readable Python."""
        lines = [f"{name} = {step}" for name, step in zip(self._results(), self.steps, strict=True)]
        total = " + ".join(self.unused)
        lines.append(f"return head({f'({total})' if len(self.unused) > 1 else total}.mean(1))")
        return f"def forward({', '.join(self.input_names)}):\n    " + "\n    ".join(lines)

    @classmethod
    def parse(cls, code: str) -> RandomGraph:
        """The graph that prints as `code`: a counter-example pasted from a test's output."""
        steps = []
        for match in STEP.finditer(code):
            _check_known(match["kind"])
            option, seed = int(match["option"] or 0), int(match["seed"] or 0)
            steps.append(Step(match["kind"], tuple(match["operands"].split(", ")), option, seed))
        if not steps:
            raise InputError(f"No line such as 'v1 = linear(x)' in {code!r}: paste what a random graph prints.")
        return cls(tuple(steps))

    def __repr__(self) -> str:
        return f"RandomGraph.parse('''\n{self.code()}\n''')"


class _Steps(nn.Module):
    def __init__(self, graph: RandomGraph) -> None:
        super().__init__()
        self.graph = graph
        for name, step in zip(graph._results(), graph.steps, strict=True):
            self.add_module(name, realistic(KINDS[step.kind].block(step.option), step.seed))
        self.head = realistic(nn.Linear(FEATURES, CLASSES))

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        for name, step in zip(self.graph._results(), self.graph.steps, strict=True):
            block = self.get_submodule(name)
            values[name] = block(*(values[operand] for operand in step.operands))
        pooled = reduce(add, (values[name] for name in self.graph.unused)).mean(1)
        return self.head(pooled)


class _OneInput(_Steps):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits({"x": x})


class _TwoInputs(_Steps):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logits({"x": x, "y": y})


_MODELS = {1: _OneInput, 2: _TwoInputs}


class _Choice(NamedTuple):
    """A step before its operands are resolved.

    Three draws only: Hypothesis deletes at most five neighbouring draws at a time, and could not delete a
    longer step when an example shrinks.
    """

    kind: str
    distances: int  # how many values back: REACH * first + last operand
    variant: int  # OPTIONS * seed + option


def _resolved(choices: list[_Choice], two_inputs: bool) -> RandomGraph:
    """Turn distances into names, most recent value first, leaving out operands that would grow too large."""
    degrees = {"y": 1, "x": 1} if two_inputs else {"x": 1}
    steps = []
    for number, choice in enumerate(choices, 1):
        kind = KINDS[choice.kind]
        operands: list[str] = []
        for back in divmod(choice.distances, REACH)[-kind.arity :]:
            others = [degrees[name] for name in operands], [1] * (kind.arity - len(operands) - 1)
            fits = [
                name
                for name, degree in reversed(degrees.items())
                if kind.growth([*others[0], degree, *others[1]]) <= HIGHEST_DEGREE
            ]
            operands.append(fits[min(back, len(fits) - 1)])
        degrees[f"v{number}"] = kind.growth([degrees[name] for name in operands])
        seed, option = divmod(choice.variant, OPTIONS)
        steps.append(Step(choice.kind, tuple(operands), option, seed if kind.parts else 0))
    return RandomGraph(tuple(steps))


def graphs(max_blocks: int = 6, kinds: Collection[str] | None = None) -> st.SearchStrategy[RandomGraph]:
    """Random graphs of 1 to `max_blocks` steps, in one or two inputs.

    kinds: names from `KINDS`; None means all exact ones (those without a cast to float32).  Examples shrink
    towards fewer steps, simpler kinds (the order of `KINDS`), and steps that use the value before them.
    """
    for name in kinds or ():
        _check_known(name)
    names = [name for name, kind in KINDS.items() if (kind.exact if kinds is None else name in kinds)]
    choice = st.builds(
        _Choice,
        kind=st.sampled_from(names),
        distances=st.integers(0, REACH**2 - 1),
        variant=st.integers(0, OPTIONS * SEEDS - 1),
    )
    return st.builds(_resolved, st.lists(choice, min_size=1, max_size=max_blocks), st.booleans())
