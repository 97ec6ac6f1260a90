"""How exact each ruleset is in float32, float16 and bfloat16, against float64 on the same weights.

    python -m benchmarks.precision --write docs/precision.json

Two transformers of random weights at the scale of trained ones: attention that is far from uniform, activations far
from linear, and a few channels that are tens of times as large as the others, as large language models have.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fxlrp

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
#: Channels whose gain is larger than the others', and how many times.
OUTLIERS = {3: 30.0, 17: 12.0, 40: -20.0}


def realistic(model: nn.Module) -> nn.Module:
    """Weights of the size that training leaves, biases, and outliers in the gains of norms."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if weight.ndim > 1:
                weight.copy_(noise * (1.0 if "embed" in name else 1.6 / weight.shape[-1] ** 0.5))
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1 + 0.3 * noise)
                for channel, times in OUTLIERS.items():
                    weight[channel] *= times
    return model.eval()


def llama() -> nn.Module:
    """Four layers of grouped attention, RMSNorm and SwiGLU."""
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **SIZES)
    return realistic(transformers.LlamaForCausalLM(config))


def bert() -> nn.Module:
    """Four layers with LayerNorm behind each sum, and a classifier."""
    config = transformers.BertConfig(num_attention_heads=4, max_position_embeddings=32, num_labels=3, **SIZES)
    return realistic(transformers.BertForSequenceClassification(config))


MODELS = {"BERT": bert, "Llama": llama}


def inputs() -> dict[str, Tensor]:
    """Two texts of twelve tokens."""
    return {"input_ids": torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(2))}


def reference(rules: fxlrp.Ruleset) -> dict[str, Any]:
    """What a ruleset that compares with another run is given: the same texts, every third token another."""
    if getattr(rules.readout, "kind", "") != "patching":
        return {}
    ids = inputs()["input_ids"].clone()
    ids[:, ::3] += 1
    return {"reference": {"input_ids": ids.clamp(max=199)}}


def error(name: str, narrow: fxlrp.ConvertedModel, exact: fxlrp.ConvertedModel) -> float | None:
    """The largest error beside the largest relevance; None where the ruleset does not read the model."""
    rules = fxlrp.ruleset(name)
    given = inputs()
    try:
        right = exact.with_ruleset(rules).attribute(given, target=1, **reference(rules)).relevance
        found = narrow.with_ruleset(rules).attribute(given, target=1, **reference(rules)).relevance
    except fxlrp.FxlrpError:
        return None
    return distance(found, right)


def distance(found: Tensor, right: Tensor) -> float | None:
    """The largest difference beside the largest of the right values; None where all of these are 0."""
    size = float(right.abs().max())
    return float((found.double() - right).abs().max()) / size if size else None


def measured() -> Iterator[tuple[str, dict[str, dict[str, float | None]]]]:
    """Ruleset by ruleset the errors by type and model."""
    made = {}
    for dtype in DTYPES:
        for model in MODELS:
            narrow = MODELS[model]().to(DTYPES[dtype])
            made[dtype, model] = fxlrp.convert(narrow), fxlrp.convert(copy.deepcopy(narrow).double())
    for name in fxlrp.rulesets():
        yield name, {d: {m: error(name, *made[d, m]) for m in MODELS} for d in DTYPES}


def main() -> None:
    """Print the errors, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a JSON file for the errors, from which the manual is written")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxlrp.errors.RelevanceWarning)
        for name, errors in measured():
            shown = {
                d: {m: None if e is None else float(f"{e:.1e}") for m, e in models.items()}
                for d, models in errors.items()
            }
            found[name] = shown
            print(f"{name:28}", *(f"{d} {' '.join(f'{e}' for e in m.values())}" for d, m in shown.items()), flush=True)
    if options.write:
        options.write.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
