"""Blocks of two of the networks, small enough for the plain tests: ``python -m benchmarks.real.blocks``.

Out: ``tests/support/real_blocks.safetensors``, read by ``tests/support/real_blocks.py``. Of SmolLM2 the twenty-first
layer with one group of heads, of MiniLM the fourth with four heads, each with the neurons that say most, weights in
eight bits by row; and what enters the layer in the trained network: of SmolLM2 its first token is 7,000 times as large
as the median.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.real.networks import language_model, sentence_encoder

FILE = Path(__file__).parents[2] / "tests" / "support" / "real_blocks.safetensors"
LAYERS = {"smollm2": 20, "minilm": 3}
NEURONS, HEADS = 128, 4


def main() -> None:
    """Take the blocks out of the trained networks and write them."""
    torch.set_num_threads(1)
    tensors = {f"smollm2.{name}": value for name, value in _of_smollm2().items()}
    tensors |= {f"minilm.{name}": value for name, value in _of_minilm().items()}
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        packed |= _packed(name, value.detach())
    save_file(packed, FILE)
    print(f"Written: {FILE}, {FILE.stat().st_size / 2**20:.2f} MiB")


def _packed(name: str, value: Tensor) -> dict[str, Tensor]:
    """A matrix of weights in eight bits by row; all else as it is."""
    if not name.endswith("weight") or value.ndim == 1:
        return {name: value.clone()}
    scale = value.abs().amax(1, keepdim=True) / 127
    return {f"{name}.whole": (value / scale).round().to(torch.int8), f"{name}.scale": scale}


def _of_smollm2() -> dict[str, Tensor]:
    network = language_model()
    model: Any = network.model
    given = {name: each[:1] for name, each in network.samples.items()}
    model.set_attn_implementation("eager")
    layer = model.model.layers[LAYERS["smollm2"]]
    seen = _Seen(layer.mlp.down_proj)
    with torch.no_grad():
        outputs = model(**given, output_hidden_states=True, output_attentions=True)
    neurons = seen.largest()
    sinks = outputs.attentions[LAYERS["smollm2"]][0, :, 1:, 0].mean(1)
    groups, width = layer.self_attn.num_key_value_groups, layer.self_attn.head_dim
    group = int(sinks.unflatten(0, (-1, groups)).mean(1).argmax())  # whose heads look at the first token most
    keys = slice(group * width, (group + 1) * width)
    queries = slice(group * groups * width, (group + 1) * groups * width)
    words = outputs.logits[0, -1].topk(2).indices
    return {
        "entering": outputs.hidden_states[LAYERS["smollm2"]],
        "model.layers.0.input_layernorm.weight": layer.input_layernorm.weight,
        "model.layers.0.post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
        "model.layers.0.self_attn.q_proj.weight": layer.self_attn.q_proj.weight[queries],
        "model.layers.0.self_attn.k_proj.weight": layer.self_attn.k_proj.weight[keys],
        "model.layers.0.self_attn.v_proj.weight": layer.self_attn.v_proj.weight[keys],
        "model.layers.0.self_attn.o_proj.weight": layer.self_attn.o_proj.weight[:, queries],
        "model.layers.0.mlp.gate_proj.weight": layer.mlp.gate_proj.weight[neurons],
        "model.layers.0.mlp.up_proj.weight": layer.mlp.up_proj.weight[neurons],
        "model.layers.0.mlp.down_proj.weight": layer.mlp.down_proj.weight[:, neurons],
        "model.norm.weight": model.model.norm.weight,
        "lm_head.weight": model.lm_head.weight[words],
    }


def _of_minilm() -> dict[str, Tensor]:
    network = sentence_encoder()
    model: Any = network.model
    given = {name: each[:1] for name, each in network.samples.items()}
    before, layer = model.encoder.encoder.layer[LAYERS["minilm"] - 1 : LAYERS["minilm"] + 1]
    entering, seen = _Seen(before.output.LayerNorm), _Seen(layer.output.dense)
    with torch.no_grad():
        scores = model(**given)
    neurons, own = seen.largest(), layer.attention.self
    heads = slice(0, HEADS * own.attention_head_size)
    found = {"entering": entering.value, "sentences": model.sentences[scores[0].topk(2).indices]}
    for name, source, rows in (
        ("embeddings.LayerNorm", before.output.LayerNorm, slice(None)),
        ("encoder.layer.0.attention.self.query", own.query, heads),
        ("encoder.layer.0.attention.self.key", own.key, heads),
        ("encoder.layer.0.attention.self.value", own.value, heads),
        ("encoder.layer.0.attention.output.LayerNorm", layer.attention.output.LayerNorm, slice(None)),
        ("encoder.layer.0.intermediate.dense", layer.intermediate.dense, neurons),
        ("encoder.layer.0.output.LayerNorm", layer.output.LayerNorm, slice(None)),
    ):
        found |= {f"{name}.weight": source.weight[rows], f"{name}.bias": source.bias[rows]}
    for name, source, columns in (
        ("encoder.layer.0.attention.output.dense", layer.attention.output.dense, heads),
        ("encoder.layer.0.output.dense", layer.output.dense, neurons),
    ):
        found |= {f"{name}.weight": source.weight[:, columns], f"{name}.bias": source.bias}
    return found


class _Seen:
    """What enters a module when it runs."""

    value: Tensor

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.value = inputs[0]

    def largest(self) -> Tensor:
        """The features that are largest in any token."""
        return self.value[0].abs().amax(0).topk(NEURONS).indices.sort().values


if __name__ == "__main__":
    main()
