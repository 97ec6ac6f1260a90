"""The random baseline of protocols that take no order: relevance is drawn instead of computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fxlrp import Attribution, ConvertedModel
from fxlrp.evaluate import Batch, Protocol
from fxlrp.evaluate.evaluation import Measured
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.protocol import Measure, protocol


class Drawn(ConvertedModel):
    """A model whose relevance is uniform noise, the same for the same inputs."""

    def attribute(self, given: Any = None, /, **options: Any) -> Attribution:
        """The attribution, with noise in the place of its relevance."""
        result = super().attribute(given, **options)
        noise = torch.rand(result.relevance.shape, generator=drawing(Batch(given), 0)).to(result.relevance)
        inputs = {name: noise if value is result.relevance else value for name, value in result.inputs.items()}
        return replace(result, relevance=noise, inputs=inputs)


@protocol
class AtRandom(Protocol):
    """What a protocol measures where relevance is uniform noise."""

    of: Protocol

    def start(self, lrp: ConvertedModel) -> Measure:
        """What the protocol measures of noise."""
        return self.of.start(Drawn(lrp.conversion))

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Those of the protocol."""
        return self.of.statistics(measured)

    def better(self) -> dict[str, int]:
        """Nothing: it is what the others are compared with."""
        return {}
