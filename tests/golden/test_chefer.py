"""Chefer et al. 2021 on a vision transformer: relevance, gradients, every read-out and baseline of their code.

Float64 agrees to 1e-8 of a tensor's largest entry; float32 to ten times what the reference itself loses in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp.engine.conversion import Conversion
from fxlrp.readout import rollout
from fxlrp.readout.attentions import Map, attention_maps
from fxlrp.readout.passes import Task
from tests.golden.test_golden import DTYPES, GOLDEN, build, close, pytestmark, read

__all__ = ["pytestmark"]
CASE = "chefer_vit"
RELEVANCE = {"matrix": "relevance"}
ABLATION = {"matrix": "gradient_relevance"}
SECOND = {"start_layer": 1, "end_layer": 2}

#: The read-outs of the authors' code: a ruleset, and what its reading is told.
READOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer_attribution": ("chefer2021-vit", {}),
    "grad": ("chefer2021-vit", {}),
    "transformer_attribution.start_layer=1": ("chefer2021-vit", {"start_layer": 1}),
    "rollout": ("chefer2021-vit", RELEVANCE),
    "rollout.start_layer=1": ("chefer2021-vit", RELEVANCE | {"start_layer": 1}),
    "full": ("full-lrp", {}),
    "last_layer": ("partial-lrp", {}),
    "last_layer.is_ablation=True": ("partial-lrp", ABLATION),
    "second_layer": ("partial-lrp", SECOND),
    "second_layer.is_ablation=True": ("partial-lrp", SECOND | ABLATION),
    "last_layer_attn": ("raw-attention", {}),
    "grad_input": ("gradient", {"score": "gradient"}),
}


@cache
def converted(dtype: str, attention: str = "sdpa") -> fxlrp.ConvertedModel:
    return fxlrp.convert(build(CASE, DTYPES[dtype], attention), "chefer2021-vit")


def pixels(dtype: str) -> Tensor:
    _, _, inputs, _ = read(CASE)
    return inputs["pixel_values"].to(DTYPES[dtype])


def expected(dtype: str, key: str) -> tuple[Tensor, float]:
    """The reference tensor and the tolerance to it."""
    lost = json.loads((GOLDEN / CASE / "meta.json").read_text())["fp32_vs_fp64_rel"]
    _, _, _, tensors = read(CASE)
    return tensors[f"{dtype}/target0/{key}"], 1e-8 if dtype == "float64" else 10 * lost[f"float64/target0/{key}"]


def attributed(dtype: str, ruleset: str, at: tuple[str, ...] = (), **readout: Any) -> fxlrp.Attribution:
    rules = fxlrp.ruleset(ruleset)
    lrp = converted(dtype).with_ruleset(rules.override(readout=readout) if readout else rules)
    return lrp.attribute(pixels(dtype), target=0, at=at)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("key", READOUTS)
def test_readouts(key: str, dtype: str) -> None:
    ruleset, readout = READOUTS[key]
    close(attributed(dtype, ruleset, **readout).relevance, *expected(dtype, key))


def test_their_rollout_from_the_ruleset_of_that_name() -> None:
    theirs = {"matrix": "relevance", "positive": True, "normalise": False, "tokens": "input"}
    close(attributed("float64", "rollout", **theirs).relevance, *expected("float64", "rollout"))


#: Where the reference's tensors are in the model; ``block`` stands for ``vit.layers.i``.
PLACES = {
    "R_{}.mlp.in": "{}.layernorm_after",
    "R_{}.attn.in": "{}.layernorm_before",
    "R_{}.add1.in.1": "{}.attention",
    "R_{}.add2.in.1": "{}.mlp",
    "v_cam": "{}.attention.v_proj",
}
STREAM = {
    "R_block0.in": "vit.embeddings",
    "R_block1.in": "vit.layers.0",
    "R_block2.in": "vit.layers.1",
    "R_pool.in": "vit.layernorm",
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_relevance_everywhere(dtype: str) -> None:
    found = attributed(dtype, "chefer2021-vit", ("vit.**",)).at
    for key, module in STREAM.items():
        close(found[module], *expected(dtype, key))
    for i in range(3):
        for key, place in PLACES.items():
            wanted, tolerance = expected(dtype, key.format(f"block{i}") if "{" in key else f"{key}{i}")
            if key == "v_cam":
                wanted = wanted.transpose(1, 2)
            close(found[place.format(f"vit.layers.{i}")], wanted, tolerance)
    patches, tolerance = expected(dtype, "R_embed_add.in.0")
    close(found["vit.embeddings.patch_embeddings"], patches[:, 1:], 10 * tolerance)


def test_skip_connections_take_what_their_branches_leave() -> None:
    found = attributed("float64", "chefer2021-vit", ("vit.**",)).at
    for i, stream in enumerate(("vit.embeddings", "vit.layers.0", "vit.layers.1")):
        skip = found[stream] - found[f"vit.layers.{i}.layernorm_before"]
        close(skip, expected("float64", f"R_block{i}.add1.in.0")[0], 1e-6)  # behind the code's x / (x + 1e-9) of a fork


def maps(dtype: str, attention: str = "sdpa") -> Sequence[Map]:
    lrp = converted(dtype, attention).conversion
    task = Task(lrp, lrp.prepare({"pixel_values": pixels(dtype)}), 0, None)
    return attention_maps(task, relevance=True, gradient=True).maps


# In float64 transformers' eager attention still takes its softmax in float32.
@pytest.mark.parametrize(("dtype", "attention"), [("float64", "sdpa"), ("float32", "sdpa"), ("float32", "eager")])
def test_attention(dtype: str, attention: str) -> None:
    for i, found in enumerate(maps(dtype, attention)):
        assert found.relevance is not None
        assert found.gradient is not None
        close(found.weights, read(CASE)[3][f"{dtype}/attn{i}"], 1e-12 if dtype == "float64" else 1e-5)
        close(found.relevance, *expected(dtype, f"attn_cam{i}"))
        close(found.gradient, *expected(dtype, f"attn_grad{i}"))


def test_relevance_of_queries_and_weights_is_half_each() -> None:
    """T5: the two factors of every product share evenly."""
    found = attributed("float64", "chefer2021-vit", ("vit.layers.*.attention.v_proj",)).at
    for i, each in enumerate(maps("float64")):
        assert each.relevance is not None
        torch.testing.assert_close(each.relevance.sum(), found[f"vit.layers.{i}.attention.v_proj"].sum())


def _clamped_last(found: Map, reading: Any, weights: Tensor | None = None) -> Tensor:
    matrix = found.score(reading.matrix).mean(1, keepdim=True).clamp(min=0)
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def _first_leftmost(maps: Any, reading: Any, rows: Tensor, counted: Tensor) -> Tensor:
    product = rows[:, None]
    for found in maps:
        product = product @ rollout.layer_matrix(found, reading)
    return product.sum(1)


BROKEN = {
    "clamped after the mean": (rollout, "layer_matrix", _clamped_last),
    "product in the other order": (rollout, "_product", _first_leftmost),
    "gradient of the rewritten graph": (Conversion, "plain", property(lambda self: self)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_mutants_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises(AssertionError, match="off by"):
        test_readouts("transformer_attribution", "float64")
