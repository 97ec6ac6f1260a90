"""Relevance equals what the original implementations computed on identical weights (``../shared/golden``).

Tolerances are each case's own, relative to the largest relevance of the tensor: 1e-9 in pure float64; 2e-6
where the peer's RMSNorm casts to float32; 1e-5 in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEmbeddings

import fxlrp

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference results (../shared/golden) are not here")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float64_eager": torch.float64}


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    folder = GOLDEN / case
    config = json.loads((folder / "config.json").read_text())
    return config, *(load_file(folder / f"{name}.safetensors") for name in ("weights", "inputs", "expected"))  # type: ignore[return-value]


def build(case: str, dtype: torch.dtype, attention: str = "sdpa") -> nn.Module:
    config, weights, _, _ = read(case)
    made = getattr(transformers, config["transformers_config_class"])(**config["config"])
    made._attn_implementation = attention
    model: nn.Module = getattr(transformers, config["model_class"])(made)
    model.load_state_dict(weights, strict=True)
    if hasattr(model, "set_experts_implementation") and dtype == torch.float64:
        model.set_experts_implementation("batched_mm")
    return model.to(dtype).eval()


@cache
def converted(case: str, dtype: str) -> fxlrp.ConvertedModel:
    """One conversion a case and precision: methods share its capture."""
    model = build(
        case, torch.float32 if dtype.startswith("float32") else torch.float64, "eager" if "eager" in dtype else "sdpa"
    )
    return fxlrp.convert(model, "gradient")


def plain_norm(self: Any, x: Tensor) -> Tensor:
    """An RMSNorm without its cast to float32."""
    scaled: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
    return scaled


def pure(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's 'float64pure': the RMSNorm's cast to float32 removed, nothing else."""
    for kind in {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(kind, "forward", plain_norm)  # one function, so that one capture serves all methods


def close(got: Tensor, expected: Tensor, relative: float) -> None:
    error = float((got - expected.reshape(got.shape)).abs().max() / expected.abs().max())
    assert error <= relative, f"off by {error:.2e} of the largest relevance"


RULESETS = {"attnlrp": "attnlrp", "cplrp": "cp-lrp", "gxi": "gradient"}
CAUSAL = [
    (case, method, dtype)
    for case, methods in (
        ("attnlrp_llama", ("attnlrp", "cplrp", "gxi")),
        ("attnlrp_gpt2", ("attnlrp", "cplrp", "gxi")),
        ("attnlrp_qwen3_moe", ("attnlrp", "gxi")),
    )
    for method in methods
    for dtype in ("float64", "float64pure", "float32", "float64_eager")
]
PREFIX = {"attnlrp_gpt2": ("transformer.h.{}", "attn", "mlp", "transformer.ln_f")}
TOLERANCE = {"float64pure": 1e-9, "float64": 2e-6, "float64_eager": 2e-6, "float32": 1e-5}


def at_modules(case: str, layers: int = 3) -> dict[str, str]:
    layer, attention, mlp, norm = PREFIX.get(case, ("model.layers.{}", "self_attn", "mlp", "model.norm"))
    names = {"R_final_norm.out": norm}
    for i in range(layers):
        path = layer.format(i)
        names |= {
            f"R_layer{i}.out": path,
            f"R_layer{i}.attn_out": f"{path}.{attention}",
            f"R_layer{i}.mlp_out": f"{path}.{mlp}",
        }
    return names


@pytest.mark.parametrize(("case", "method", "dtype"), CAUSAL)
def test_causal_language_models(case: str, method: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, inputs, expected = read(case)
    lrp = converted(case, dtype).with_ruleset(RULESETS[method])
    if dtype == "float64pure":
        pure(lrp.model, monkeypatch)
    modules = at_modules(case)
    targets = json.loads((GOLDEN / case / "meta.json").read_text())["targets"]
    for name, target in targets.items():
        key = f"{method}/{dtype}/{name}"
        if f"{key}/R_embeds" not in expected:
            continue
        result = lrp.attribute({"input_ids": inputs["input_ids"]}, target=target, at=list(modules.values()))
        close(result.features, expected[f"{key}/R_embeds"], TOLERANCE[dtype])
        close(result.relevance, expected[f"{key}/R_embeds"].sum(-1), TOLERANCE[dtype])
        for label, module in modules.items():
            if f"{key}/{label}" in expected:
                close(result.at[module], expected[f"{key}/{label}"], TOLERANCE[dtype])


@pytest.mark.parametrize("mask", ["nomask", "padmask"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float64_eager"])
@pytest.mark.parametrize("method", ["attnlrp", "gxi"])
def test_bert(method: str, dtype: str, mask: str) -> None:
    _, _, inputs, expected = read("attnlrp_bert")
    given = {k: inputs[k] for k in ("input_ids", "token_type_ids")} | {
        "attention_mask": inputs[f"attention_mask_{mask}"]
    }
    modules = {"R_embeddings.out": "bert.embeddings", "R_pooler.out": "bert.pooler"}
    for i in range(3):
        modules |= {
            f"R_layer{i}.out": f"bert.encoder.layer.{i}",
            f"R_layer{i}.attention.out": f"bert.encoder.layer.{i}.attention",
        }
    lrp = converted("attnlrp_bert", dtype).with_ruleset(RULESETS[method])
    names = sorted({k.split("/")[3] for k in expected if k.startswith(f"{method}/{dtype}/{mask}/target")})
    targets = json.loads((GOLDEN / "attnlrp_bert" / "meta.json").read_text()).get("targets") or {
        n: int(n[6:]) for n in names
    }
    tolerance = 1e-9 if dtype != "float32" else 1e-5
    for name in names:
        key = f"{method}/{dtype}/{mask}/{name}"
        result = lrp.attribute(given, target=targets[name], at=list(modules.values()))
        close(result.features, expected[f"{key}/R_embeds"], tolerance)
        for label, module in modules.items():
            if f"{key}/{label}" in expected:
                close(result.at[module], expected[f"{key}/{label}"], tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "method",
    [
        "gxi",
        "cplrp",
        "zennit.gamma_conv0.25_lin0.05",
        "zennit.gamma_conv0.1_lin0.0",
        "zennit.gamma_conv100_lin1",
    ],
)
def test_vit(method: str, dtype: str) -> None:
    _, _, inputs, expected = read("cplrp_vit")
    rules = fxlrp.ruleset(RULESETS.get(method, "cp-lrp"))
    if method.startswith("zennit"):
        convolution, linear = (
            float(part.removeprefix("conv").removeprefix("lin"))
            for part in method.removeprefix("zennit.gamma_").split("_")
        )
        for place in ("*.mlp.*", "classifier"):
            rules = rules.override(linear={"rule": "gamma", "gamma": linear}, where=place)
        rules = rules.override(convolution={"rule": "gamma", "gamma": convolution})
    lrp = converted("cplrp_vit", dtype).with_ruleset(rules)
    modules = {f"R_layer{i}.out": f"vit.layers.{i}" for i in range(3)} | {"R_embeddings.out": "vit.embeddings"}
    for name in sorted({k.split("/")[2] for k in expected if k.startswith(f"{dtype}/{method}/target")}):
        result = lrp.attribute(
            inputs["pixel_values"].to(DTYPES[dtype]),
            target=_target("cplrp_vit", name),
            at=list(modules.values()),
        )
        tolerance = 1e-8 if dtype == "float64" else 1e-4
        close(result.relevance, expected[f"{dtype}/{method}/{name}/R_pixels"], tolerance)
        for label, module in modules.items():
            close(result.at[module], expected[f"{dtype}/{method}/{name}/{label}"], tolerance)


def _target(case: str, name: str) -> int:
    targets = json.loads((GOLDEN / case / "meta.json").read_text()).get("targets", {})
    return (
        int(targets.get(name, name.removeprefix("target")))
        if isinstance(targets, Mapping)
        else int(name.removeprefix("target"))
    )


class AliBlock(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.output = nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": nn.LayerNorm(size)})
        self.heads = heads

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        context = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        h = self.output["dense"](context.transpose(1, 2).flatten(2)) + h
        return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-12)


class AliBert(nn.Module):
    """The authors' BERT: no feed-forward, unscaled scores, LayerNorm without affine and with the unbiased deviation."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        embeddings = transformers.BertConfig(
            vocab_size=61,
            hidden_size=32,
            num_attention_heads=4,
            max_position_embeddings=32,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
        )
        self.embeds = BertEmbeddings(embeddings)
        self.attention_layers = nn.ModuleList(AliBlock(32, 4) for _ in range(config["n_blocks"]))
        self.pooler = nn.ModuleDict({"dense": nn.Linear(32, 32)})
        self.classifier = nn.Linear(32, config["n_classes"])

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        h = self.embeds(input_ids=input_ids, token_type_ids=token_type_ids)
        for block in self.attention_layers:
            h = block(h)
        return self.classifier(torch.tanh(self.pooler["dense"](h[:, 0])))  # type: ignore[no-any-return]


ALI = {
    "GI": fxlrp.ruleset("gradient"),
    "AH": fxlrp.ruleset("ali2022-ah"),
    "LN": fxlrp.ruleset("ali2022-ln"),
    "AH+LN": fxlrp.ruleset("ali2022"),
    "LN_meandetach": fxlrp.ruleset("ali2022-ln").override(**{"norm.mean": "constant"}),
    "AH+LN_meandetach": fxlrp.ruleset("ali2022").override(**{"norm.mean": "constant"}),
}


def with_gamma(rules: fxlrp.Ruleset) -> fxlrp.Ruleset:
    """The authors' gamma experiment: on q, k, v as a rule, in the output projection by changing the forward pass."""
    for i, gamma in enumerate((0.3, 0.1, 0.05)):
        block = f"attention_layers.{i}"
        for name in ("query", "key", "value"):
            spec = {"rule": "gamma", "gamma": gamma, "form": "ali", "epsilon": 0.0}
            rules = rules.override(linear=spec, where=f"{block}.{name}")
        spec = {"rule": "ali_forward_gamma", "gamma": gamma}
        rules = rules.override(linear=spec, where=f"{block}.output.dense")
    return rules


ALI |= {"GI.gamma": with_gamma(ALI["GI"]), "AH+LN.gamma": with_gamma(ALI["AH+LN"])}


@cache
def ali(dtype: str) -> fxlrp.ConvertedModel:
    config, weights, _, _ = read("ali_bert")
    model = AliBert(config)
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.missing_keys or all("position_ids" in k or "token_type_ids" in k for k in missing.missing_keys)
    return fxlrp.convert(model.to(DTYPES[dtype]).eval(), "gradient")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mode", list(ALI))
def test_ali(mode: str, dtype: str) -> None:
    _, _, inputs, expected = read("ali_bert")
    lrp = ali(dtype).with_ruleset(ALI[mode])
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for name in sorted({k.split("/")[2] for k in expected if k.startswith(f"{dtype}/{mode}/target")}):
        result = lrp.attribute(dict(inputs), target=_target("ali_bert", name), at=["embeds", "attention_layers.*"])
        close(result.at["embeds"].sum(-1), expected[f"{dtype}/{mode}/{name}/R_tokens"], tolerance)
        for i in (1, 2):
            close(
                result.at[f"attention_layers.{i - 1}"],
                expected[f"{dtype}/{mode}/{name}/R_layer{i}.in"],
                tolerance,
            )


CAPTUM = {
    "default": fxlrp.ruleset("epsilon"),
    "epsilon": fxlrp.ruleset("epsilon"),
    "epsilon0.1": fxlrp.ruleset("epsilon").override(epsilon=0.1),
    "gamma": fxlrp.ruleset("epsilon").override(
        linear={"rule": "gamma", "gamma": 0.25, "form": "ali", "scale_bias": False, "epsilon": 1e-9}
    ),
    "alpha1beta0": fxlrp.ruleset("epsilon").override(
        linear={
            "rule": "weight_sign",
            "alpha": 1.0,
            "beta": 0.0,
            "epsilon": 1e-9,
            "bias_share": "whole",
        }
    ),
}


@cache
def perceptron(dtype: str) -> fxlrp.ConvertedModel:
    _, weights, _, _ = read("captum_mlp")
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    model.load_state_dict(weights)
    return fxlrp.convert(model.to(DTYPES[dtype]).eval(), "gradient")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", list(CAPTUM))
def test_captum(method: str, dtype: str) -> None:
    _, _, inputs, expected = read("captum_mlp")
    lrp = perceptron(dtype).with_ruleset(CAPTUM[method])
    for name in sorted({k.split("/")[2] for k in expected if k.startswith(f"{dtype}/{method}/target")}):
        result = lrp.attribute(inputs["x"].to(DTYPES[dtype]), target=_target("captum_mlp", name))
        close(result.relevance, expected[f"{dtype}/{method}/{name}/R"], 1e-8 if dtype == "float64" else 1e-4)
        assert not math.isnan(float(result.relevance.sum()))
