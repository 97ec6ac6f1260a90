"""A model that is loaded from a GGUF file: its packed weights, once unpacked, are weights as others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fxlrp

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[dev]'")

WIDTH, HEADS, LAYERS, WORDS = 32, 4, 1, 48
IDS = torch.tensor([[3, 9, 27, 5, 14, 2]])


def _write(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama of one layer with eight-bit weights; what they unpack to, by name."""
    numbers = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(WORDS)
    square, wide = (WIDTH, WIDTH), (2 * WIDTH, WIDTH)
    shapes = {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
    matrices = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    matrices |= {"token_embd.weight": (WORDS, WIDTH), "output.weight": (WORDS, WIDTH)}
    kind, unpacked = gguf.GGMLQuantizationType.Q8_0, {}
    for name, shape in matrices.items():
        packed = gguf.quants.quantize(numbers.normal(0, 0.3, shape).astype(np.float32), kind)
        unpacked[name] = gguf.quants.dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unpacked


def test_weights_of_a_gguf_file_have_the_relevance_of_what_they_unpack_to(tmp_path: Path) -> None:
    unpacked = _write(tmp_path / "model.gguf")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    table = torch.from_numpy(unpacked["token_embd.weight"])
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), table)
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain.lm_head.weight.copy_(torch.from_numpy(unpacked["output.weight"]))
        plain.model.layers[0].mlp.up_proj.weight.copy_(torch.from_numpy(unpacked["blk.0.ffn_up.weight"]))
    for ruleset in ("attnlrp", "epsilon"):
        ours, theirs = (
            fxlrp.convert(each, ruleset).attribute(IDS, target=7, ledger=True) for each in (model.eval(), plain.eval())
        )
        torch.testing.assert_close(ours.relevance, theirs.relevance)
        assert ours.ledger is not None
        assert float(ours.ledger.gap.abs().max()) < 1e-5 * float(ours.explained.abs().max())
