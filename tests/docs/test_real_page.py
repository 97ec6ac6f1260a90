"""``make real`` without its packages: a small network in every type, and the page of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from benchmarks.real import networks
from benchmarks.real.networks import Network
from benchmarks.real.page import render
from benchmarks.real.runs import Prepared, Reading, Record, load, run
from fxlrp.errors import InputError


def leaf(model: nn.Module, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    x = given["input"].detach().clone().requires_grad_()
    return x, {"input": x}


@pytest.fixture(scope="module")
def small() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return Network(model, {"input": torch.randn(2, 6)}, (), leaf, 0.0)


def test_a_network_is_run_in_every_type_and_goes_on_where_it_stopped(small: Network, tmp_path: Path) -> None:
    file, said = tmp_path / "kept" / "rulesets.jsonl", list[str]()
    run("small", lambda: Prepared.of(small), ["epsilon", "rollout"], file, said.append)
    run("small", lambda: Prepared.of(small), ["epsilon", "rollout", "gradient"], file, said.append)
    found = load(file)
    epsilon, rollout = found["small", "epsilon"], found["small", "rollout"]
    far = {name: reading.distance or 0.0 for name, reading in epsilon.readings.items()}
    assert far["float32"] < 1e-6 < far["float16"] < far["bfloat16"] < 0.1
    assert all(reading.finite and (reading.gap or 0.0) < 1e-6 for reading in epsilon.readings.values())
    assert epsilon.time is not None
    assert epsilon.time > 0
    assert "attention" in rollout.reason
    assert sum("epsilon" in line for line in said) == 1
    assert found["small", "gradient"].readings


def test_a_missing_package_is_named_with_its_remedy() -> None:
    with pytest.raises(InputError, match=r"'no_such_package' is missing: `make real`.*\[real\]"):
        networks.folder("no_such_package")


def test_the_page_tells_what_ran_what_did_not_fit_and_what_is_missing() -> None:
    good = Reading(1e-7, 0.5, True, 2e-7)
    loud = Reading(None, float("inf"), False, warned=["Relevance is NaN."])
    readings = {"float32": good, "float16": loud, "bfloat16": good}
    ran = Record("minilm", "attnlrp", readings, 2.0, 3.0)
    refused = Record("minilm", "lat", reason="No attention, and the reading of 'lat' needs its weights")
    page = render([ran, refused], [])
    assert "| [`attnlrp`](rulesets/attnlrp.md) | 1e-07 | **not finite** | 2e-07 | – | 2e-07 | 2.0 | 3.0 |" in page
    assert "- lat: No attention, and the ruleset's reading needs its weights." in page
    assert "- attnlrp: Relevance is NaN. (float16)" in page
    assert f"| 1 | 1 | 1e-07 | 1 | 1 | {len(fxlrp.rulesets()) - 2} |" in page
