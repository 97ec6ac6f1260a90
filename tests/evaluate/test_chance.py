"""The random baseline of benchmarks: the same for every ruleset, and in the order of no explanation."""

from __future__ import annotations

import torch

import fxlrp
from benchmarks.papers.chance import AtRandom
from fxlrp.evaluate import AreaBetween
from tests.evaluate.test_perturbation import IDS, UNK, Votes


def test_the_order_is_drawn_from_the_inputs_alone() -> None:
    lrp = fxlrp.convert(Votes().eval(), "gradient")
    protocol = AtRandom(AreaBetween(3, UNK))
    found = protocol.run(lrp, {"input_ids": IDS}).measured
    again = protocol.run(lrp.with_ruleset("epsilon"), {"input_ids": IDS}).measured
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert protocol.better() == {}


def test_of_many_draws_the_area_is_nothing() -> None:
    lrp = fxlrp.convert(Votes().eval(), "gradient")
    batch = {"input_ids": IDS[:1].repeat(2000, 1)}
    assert AreaBetween(3, UNK).run(lrp, batch)["abpc"] > 2
    assert abs(AtRandom(AreaBetween(3, UNK)).run(lrp, batch)["abpc"]) < 0.3
