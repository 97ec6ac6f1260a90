"""One small model for every kind of operator, converted once for all tests of a session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

import fxlrp
from fxlrp.capture import Program, capture
from fxlrp.testing import KINDS, RandomGraph
from fxlrp.testing.graphs import Step

#: Kinds that stand for one batch: one decides by values, take_along_dim fixes sizes of which it compares.
BOUND = ("checked", "reordered")
#: Kinds that unroll into long graphs: one ruleset is tried on them.
LONG = ("lstm", "gru")
#: Kinds for whose parts fused kernels stand.
FUSED = [
    name for name in KINDS if name.startswith(("sdpa", "layer_norm", "rms_norm", "group_norm", "batch_norm", "cross"))
]
FUSED += ["multihead_attention_module", "attention_rotary", "attention_fused_qkv", "residual_post_norm"]


def graph_of(kind: str) -> RandomGraph:
    """The kind on the inputs before a skip connection, and in another form between a linear layer and a GELU."""
    more = ("y",) * (KINDS[kind].arity - 1)
    steps = (
        Step(kind, ("x", *more)),
        Step("residual", ("v1",)),
        Step("linear", ("x",)),
        Step(kind, ("v3", *more), option=1, seed=1),
        Step("gelu", ("v4",)),
    )
    return RandomGraph(steps)


@dataclass(frozen=True)
class Sample:
    """A kind's model as converted, with two samples to explain."""

    kind: str
    lrp: fxlrp.ConvertedModel
    inputs: dict[str, Tensor]

    @property
    def exact(self) -> bool:
        """Whether it computes in float64 throughout."""
        return KINDS[self.kind].exact

    def under(self, rules: fxlrp.Ruleset) -> fxlrp.ConvertedModel:
        """The same graph under other rules."""
        return self.lrp.with_ruleset(rules)


def convert(kind: str) -> Sample:
    """The kind captured now, for a test that has changed how that is done."""
    graph = graph_of(kind)
    inputs = graph.inputs()
    return Sample(kind, fxlrp.convert(graph.module(), "conservative", example_inputs=inputs), inputs)


def captured(kind: str) -> tuple[Program, nn.Module, dict[str, Tensor]]:
    """The kind's program, before anything has compared it with the model, the model and its inputs."""
    graph = graph_of(kind)
    model, inputs = graph.module(), graph.inputs()
    return capture(model, inputs), model, inputs


converted = cache(convert)
