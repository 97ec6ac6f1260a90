"""Blocks of two trained networks (benchmarks/real/blocks.py) with what enters them: outliers, and a token at which most
of the attention ends, which random weights do not have.
"""

from __future__ import annotations

from functools import lru_cache

import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.real.blocks import FILE, HEADS, NEURONS
from benchmarks.real.networks import Nearest


def _weights(name: str) -> dict[str, Tensor]:
    found, stored = {}, load_file(FILE)
    for key, value in stored.items():
        network, _, path = key.partition(".")
        if network == name and not path.endswith(".scale"):
            scale = stored.get(f"{key.removesuffix('.whole')}.scale")
            found[path.removesuffix(".whole")] = value if scale is None else value.float() * scale
    return found


@lru_cache
def smollm2() -> tuple[nn.Module, Tensor]:
    """One layer of a language model, with the scores of the next word and the second likeliest; [1, 5, 576]."""
    weights = _weights("smollm2")
    config = transformers.LlamaConfig(
        vocab_size=2,
        hidden_size=576,
        intermediate_size=NEURONS,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    entering = weights.pop("entering")
    lost, more = model.load_state_dict(weights, strict=False)
    assert (lost, more) == (["model.embed_tokens.weight"], [])
    return model, entering


@lru_cache
def minilm() -> tuple[nn.Module, Tensor]:
    """One layer of a sentence encoder, with the scores of the two nearest sentences; [1, tokens, 384]."""
    weights = _weights("minilm")
    config = transformers.BertConfig(
        vocab_size=1, hidden_size=384, intermediate_size=NEURONS, num_hidden_layers=1, num_attention_heads=12
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False).eval()
    attention = encoder.encoder.layer[0].attention
    for name in ("query", "key", "value"):
        setattr(attention.self, name, nn.Linear(384, HEADS * 32))
    attention.self.num_attention_heads, attention.self.all_head_size = HEADS, HEADS * 32
    attention.output.dense = nn.Linear(HEADS * 32, 384)
    for name, parameter in encoder.named_parameters():
        if name.startswith("embeddings.") and "LayerNorm" not in name:
            nn.init.zeros_(parameter)
    entering, sentences = weights.pop("entering"), weights.pop("sentences")
    lost, more = encoder.load_state_dict(weights, strict=False)
    assert all(name.startswith("embeddings.") for name in lost)
    assert not more
    return Nearest(encoder, sentences).eval(), entering


BLOCKS = {"smollm2": smollm2, "minilm": minilm}
