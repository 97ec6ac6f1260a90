"""Relevance of a CNN equals what zennit 0.5 computed with its composites on identical weights (``../shared/golden``).

Tolerances are the case's own: 1e-9 of the largest relevance in float64, 1e-4 in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fxlrp

CASE = Path(__file__).parents[3] / "shared" / "golden" / "zennit_cnn"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="the reference results (../shared/golden) are not here")
TYPES = {"float64": (torch.float64, 1e-9), "float32": (torch.float32, 1e-4)}
SEEDS = {"seed_onehot": "one", "seed_logit": "logit"}
#: Their names of the composites, with what was changed of the defaults. The bounds of the input are the case's.
COMPOSITES: dict[str, tuple[str, dict[str, object]]] = {
    "EpsilonPlus": ("epsilon-plus", {}),
    "EpsilonPlusFlat": ("epsilon-plus-flat", {}),
    "EpsilonPlusFlat_eps1e-2": ("epsilon-plus-flat", {"linear": {"epsilon": 1e-2}}),
    "EpsilonGammaBox": ("epsilon-gamma-box", {}),
    "EpsilonGammaBox_gamma0.1_eps1e-2": ("epsilon-gamma-box", {"gamma": 0.1, "linear": {"epsilon": 1e-2}}),
    "EpsilonAlpha2Beta1": ("epsilon-alpha2-beta1", {}),
    "EpsilonAlpha2Beta1Flat": ("epsilon-alpha2-beta1-flat", {}),
    "ExcitationBackprop": ("excitation-backprop", {}),
    "GuidedBackprop": ("guided-backprop", {}),
}


def network() -> nn.Module:
    convolutions = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 16, 3))
    return nn.Sequential(
        *(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.MaxPool2d(2), convolutions[2], nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5)),
    )


def test_every_composite_of_the_case_is_compared() -> None:
    names = {key.split("/")[1] for key in load_file(CASE / "expected.safetensors") if key.endswith("/R")}
    assert names == set(COMPOSITES)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites(name: str, precision: str) -> None:
    dtype, tolerance = TYPES[precision]
    model = network()
    model.load_state_dict(load_file(CASE / "weights.safetensors"))
    x = load_file(CASE / "inputs.safetensors")["x"].to(dtype)
    meta, expected = json.loads((CASE / "meta.json").read_text()), load_file(CASE / "expected.safetensors")
    ruleset, changes = COMPOSITES[name]
    rules = fxlrp.ruleset(ruleset).override(**changes)
    if ruleset == "epsilon-gamma-box":
        rules = rules.override(low=meta["low"], high=meta["high"])
    lrp = fxlrp.convert(model.to(dtype).eval(), rules)
    keys = [key for key in expected if key.startswith(f"{precision}/{name}/")]
    assert keys
    for key in keys:
        _, _, target, seed, _ = key.split("/")
        explained = lrp.with_ruleset(rules.override(seed=SEEDS[seed]))
        found = explained.attribute(x, target=int(target.removeprefix("target"))).relevance
        error = float((found - expected[key]).abs().max() / expected[key].abs().max())
        assert error <= tolerance, f"{key} is off by {error:.2e} of the largest relevance"
