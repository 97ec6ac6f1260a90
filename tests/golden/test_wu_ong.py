"""Wu and Ong's LRP, gradient baselines and attention tracing equal what their code computed on identical weights.

float64 to 1e-8 of the largest number, as the case states; float32 to ten times what their code itself loses there.
"""

from __future__ import annotations

import pytest

import fxlrp
from tests.golden.test_golden import GOLDEN, close, converted, read

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference results (../shared/golden) are not here")
CASE = "wuong_bert"
SEEDS = {"one": "seed_onehot", "logit": "seed_logit", "probability": "seed_softmax"}
BASELINES = {"gradient-sensitivity": "gs", "gradient-x-input": "gi"}
FLOAT = ["float64", "float32"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("seed", SEEDS)
def test_lrp(seed: str, dtype: str, attention: str) -> None:
    _, _, inputs, expected = read(CASE)
    rules = fxlrp.ruleset("wu-ong2020").override(seed=seed)
    result = (
        converted(CASE, dtype if attention == "sdpa" else f"{dtype}_eager")
        .with_ruleset(rules)
        .attribute(dict(inputs), target=0)
    )
    wanted = expected[f"{dtype}/target0/{SEEDS[seed]}/lrp"]
    tolerance = 1e-8 if dtype == "float64" else 3.4e-3
    close(result.features, wanted, tolerance)
    close(result.relevance, wanted.abs().sum(-1), tolerance)


def test_the_skip_connection_has_the_derivative_of_its_whole_sublayer() -> None:
    _, _, inputs, expected = read(CASE)
    local = fxlrp.ruleset("wu-ong2020").override(seed="one", residual="vjp")
    result = converted(CASE, "float64").with_ruleset(local).attribute(dict(inputs), target=0)
    with pytest.raises(AssertionError, match="off by"):
        close(result.features, expected["float64/target0/seed_onehot/lrp"], 0.5)


def test_the_way_by_the_jacobian() -> None:
    _, _, inputs, expected = read(CASE)
    rules = fxlrp.ruleset("wu-ong2020-jacobian").override(seed="one")
    result = converted(CASE, "float64").with_ruleset(rules).attribute(dict(inputs), target=0)
    close(result.features, expected["float64/target0/seed_onehot/lrp_jacobian"], 1e-8)
    with pytest.raises(AssertionError, match="off by"):
        close(result.features, expected["float64/target0/seed_onehot/lrp"], 1e-8)


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("name", BASELINES)
def test_gradients(name: str, dtype: str) -> None:
    _, _, inputs, expected = read(CASE)
    result = converted(CASE, dtype).with_ruleset(name).attribute(dict(inputs), target=0)
    wanted = expected[f"{dtype}/target0/seed_onehot/{BASELINES[name]}"]
    tolerance = 1e-8 if dtype == "float64" else 1e-5
    close(result.features, wanted, tolerance)
    close(result.relevance, wanted.square().sum(-1), tolerance)


@pytest.mark.parametrize("dtype", FLOAT)
def test_attention_tracing(dtype: str) -> None:
    _, _, inputs, expected = read(CASE)
    result = converted(CASE, dtype).with_ruleset("lat").attribute(dict(inputs), target=0)
    close(result.relevance, expected[f"{dtype}/lat"], 1e-8 if dtype == "float64" else 1e-5)
