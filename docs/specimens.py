"""What each ruleset does to each kind of operation: in goes a ruleset, out come the rules that its plan gives to three
small models which hold one of everything.

The matrix of the manual is thus read from plans, as they come out for any model, and not from the rulesets' text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.graph.nodes import module_path
from fxlrp.graph.operators import operator_of
from fxlrp.planning.decide import classify
from fxlrp.planning.plan import Plan

NOTHING, PLAIN = "–", "·"
SIZE = 4


class Layers(nn.Module):
    """Convolutions, poolings and a linear layer, on an image [batch, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, SIZE, 3, padding=1), nn.Conv2d(SIZE, SIZE, 3, padding=1)
        self.maximum, self.average = nn.MaxPool2d(2), nn.AvgPool2d(4)
        self.linear = nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.linear(self.average(self.maximum(x)).flatten(1))


class Attention(nn.Module):
    """Attention of one head over [batch, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2) / SIZE**0.5, -1) @ self.v(x)


class Block(nn.Module):
    """A transformer's block with a gated branch, read at its first token, on [batch, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(SIZE))
        self.norm, self.attention, self.activation = nn.LayerNorm(SIZE), Attention(), nn.GELU()
        self.gate, self.up, self.head = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        x = x + self.attention(self.norm(x))
        x = F.silu(self.gate(x)) * self.up(x)
        return self.head(self.activation(x)[:, 0])


class Recurrent(nn.Module):
    """An LSTM over [batch, tokens, features], read at its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(SIZE, SIZE, batch_first=True), nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


SPECIMENS: dict[type[nn.Module], tuple[int, ...]] = {
    Layers: (1, 3, 8, 8),
    Block: (1, 3, SIZE),
    Recurrent: (1, 3, SIZE),
}


@dataclass(frozen=True)
class Column:
    """A kind of operation: its title, the specimen that has it, and the nodes there that are it."""

    title: str
    specimen: type[nn.Module]
    holds: Callable[[fx.Node, str, tuple[str, ...]], bool]


def at(path: str, category: str) -> Callable[[fx.Node, str, tuple[str, ...]], bool]:
    """Nodes of this class in this module."""
    return lambda node, found, _: module_path(node) == path and found == category


def labelled(label: str, *but: str) -> Callable[[fx.Node, str, tuple[str, ...]], bool]:
    """Nodes with this label and none of the others."""
    return lambda _, __, labels: label in labels and not {*but} & {*labels}


#: The tables of the matrix, by title.
TABLES: dict[str, tuple[Column, ...]] = {
    "Layers": (
        Column("first convolution", Layers, at("first", "convolution")),
        Column("convolution", Layers, at("second", "convolution")),
        Column("linear layer", Layers, at("linear", "linear")),
        Column("max pooling", Layers, at("maximum", "selection")),
        Column("mean pooling", Layers, at("average", "sum")),
        Column("one token of many", Block, lambda _, category, __: category == "index"),
    ),
    "Sums, norms and activations": (
        Column("residual sum", Block, labelled("residual")),
        Column("where its branches part", Block, lambda _, category, __: category == "fork"),
        Column("sum with a constant", Block, lambda n, found, _: module_path(n) == "" and found == "shift"),
        Column("norm: mean", Block, labelled("norm.mean")),
        Column("norm: scale", Block, labelled("norm.scale")),
        Column("norm: what is scaled", Block, lambda _, category, labels: "norm" in labels and category == "scale"),
        Column("activation", Block, at("activation", "activation")),
    ),
    "Attention and gates": (
        Column("scores q kᵀ", Block, labelled("attention.scores")),
        Column("softmax", Block, labelled("attention.weights")),
        Column("output A v", Block, labelled("attention.output")),
        Column("activation of a gate", Block, labelled("gated.gate")),
        Column("gate × signal", Block, labelled("gated.product")),
        Column("LSTM: gates", Recurrent, lambda n, _, __: n.target is torch.ops.aten.sigmoid.default),
        Column("LSTM: gate × signal", Recurrent, lambda n, _, __: n.target is torch.ops.aten.mul.Tensor),
    ),
}


def matrix(names: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """For each table its rows: a ruleset's name, then the rule at each column's operations."""
    return {
        title: [(name, *(cell(name, column) for column in columns)) for name in names]
        for title, columns in TABLES.items()
    }


def cell(name: str, column: Column) -> str:
    """The rules that a ruleset gives to a column's operations; ``PLAIN``: no rule is needed, ``NOTHING``: nothing
    arrives there.
    """
    found = dict.fromkeys(_rules(plan(name, column.specimen), column))
    chosen = [rule for rule in found if rule != PLAIN]
    return ", ".join(chosen or found) or NOTHING


@cache
def plan(name: str, specimen: type[nn.Module]) -> Plan:
    """The plan of a specimen under a ruleset."""
    return _captured(specimen).with_ruleset(name).plan


@cache
def _captured(specimen: type[nn.Module]) -> fxlrp.ConvertedModel:
    torch.manual_seed(0)
    inputs = torch.rand(SPECIMENS[specimen])
    return fxlrp.convert(specimen().eval(), "gradient", example_inputs=inputs, strict=False)


def _rules(found: Plan, column: Column) -> Iterator[str]:
    for node in found.structure.forks:
        if column.holds(node, "fork", ()):
            yield found.forks[node].rule.name if node in found.forks else PLAIN
    for node in found.program.graph.nodes:
        operator = operator_of(node) if node.op == "call_function" else None
        if operator is None:
            continue
        category = classify(node, operator, set(found.carrying), found.structure.dependent)
        if not column.holds(node, str(category), found.structure.labels.get(node, ())):
            continue
        decision = found.decisions.get(node)
        if decision is not None:
            yield decision.rule.name
        elif node in found.carrying:
            yield PLAIN
