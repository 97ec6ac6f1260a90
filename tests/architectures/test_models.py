"""Every model of the zoo under every ruleset: converts strictly, keeps its values, closes its ledger.

Models with casts to float32 inside close to 1e-5 of the explained value (the casts are not invertible to
rounding), all others to 1e-9; a re-associated operation may move an output by 1e-12.
"""

from __future__ import annotations

import pytest
import torch

from fxlrp.engine.targets import logits_of
from fxlrp.testing.checks import at_inputs
from tests.support.zoo import ZOO, converted

CASTS = {
    *("modernbert", "gptj", "bloom", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("phi3", "olmo2", "cohere", "mixtral", "qwen3_moe", "mamba", "t5"),
}


#: Rulesets that differ in what they do; the others combine the same rules or read the same messages otherwise.
RULESETS = (
    "attnlrp",
    "chefer2021-vit",
    "conservative",
    "conservative-residual",
    "cp-lrp",
    "epsilon-plus",
    "gradient",
    "libragrad",
)
#: On most models those in which a value that carries relevance meets every kind of message.
FEW = ("attnlrp", "chefer2021-vit", "conservative-residual")
EVERY = ("bert", "llama", "mixtral", "t5", "vit", "resnet", "mlp")


#: Repeats of others on the list, by another size, activation or order of the same layers.
REPEATS = {
    *("roberta", "xlm-roberta", "electra", "mpnet", "deit", "dinov2", "beit", "mistral", "qwen2", "qwen3", "gemma"),
    *("gemma3_text", "phi", "phi3", "olmo2", "cohere", "stablelm", "starcoder2", "falcon", "opt", "qwen3_moe"),
    *("pegasus", "transformer_encoder_norm_first", "gpt_neox", "transformer_encoder", "gemma2", "modernbert"),
    *("bart", "swin"),  # the census has Whisper and Swin v2
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in REPEATS else ()) for name in ZOO]
)
def test_every_ruleset(name: str) -> None:
    first, inputs = converted(name), ZOO[name].inputs()
    with torch.no_grad():
        expected = logits_of(first.model(**inputs))
    failures = []
    for ruleset in RULESETS if name in EVERY else FEW:
        result = first.with_ruleset(at_inputs(ruleset)).attribute(inputs, ledger=True)
        moved = float((logits_of(result.outputs) - expected).abs().max() / expected.abs().max())
        assert result.ledger is not None
        gap = float((result.ledger.gap.abs() / result.ledger.explained.abs()).max())
        if not (moved <= 1e-12 and gap <= (1e-5 if name in CASTS else 1e-9)):  # NaN fails, too
            failures.append(f"{ruleset}: values off by {moved:.1e}, gap {gap:.1e}")
    assert not failures, "\n".join(failures)
