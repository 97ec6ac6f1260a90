"""How much faster generated tokens are explained from one pass than one by one: python -m benchmarks.generation.

In go small random models; out comes a table of ratios of times, measured in one process and interleaved, and of the
largest difference between the two answers. Repeating works on shorter texts (prompt and what was generated so far);
one pass works on the whole text for each token, but needs one product per linear layer and token where repeating needs
two, none at all behind the last mixing of positions (the logits), and makes them of many tokens at a time. Where
products of matrices are all that counts this bounds the ratio: see ``products``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxlrp

TOKENS = 50


def llama(hidden: int, layers: int, words: int) -> nn.Module:
    """A Llama with the usual proportions."""
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 or 1,
        num_key_value_heads=hidden // 64 or 1,
    )
    return transformers.LlamaForCausalLM(config)


def t5(hidden: int, layers: int, words: int) -> nn.Module:
    """A T5 with the usual proportions."""
    config = transformers.T5Config(
        vocab_size=words,
        d_model=hidden,
        d_ff=4 * hidden,
        d_kv=64,
        num_layers=layers,
        num_heads=hidden // 64 or 1,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


#: Name, model, tokens of the prompt.
CASES: tuple[tuple[str, Callable[[], nn.Module], int], ...] = (
    ("Llama, 2 layers of 64", lambda: llama(64, 2, 1000), 50),
    ("T5, 2 + 2 layers of 64", lambda: t5(64, 2, 1000), 50),
    ("Llama, 8 layers of 512, 32000 words", lambda: llama(512, 8, 32000), 50),
    ("Llama, 8 layers of 512, 1000 words", lambda: llama(512, 8, 1000), 50),
    ("T5, 6 + 6 layers of 512, 32128 words", lambda: t5(512, 6, 32128), 50),
)


def one_by_one(lrp: fxlrp.ConvertedModel, ids: Tensor, generated: Tensor) -> list[Tensor]:
    """The relevance of the main input to each token, from a forward and a backward pass of its own."""
    columns = []
    start = torch.zeros(len(ids), 1, dtype=torch.long)
    two_sided = lrp.config.is_encoder_decoder
    for k in range(generated.shape[1]):
        before = generated[:, :k]
        given = {"input_ids": ids if two_sided else torch.cat((ids, before), 1)}
        if two_sided:
            given["decoder_input_ids"] = torch.cat((start, before), 1)
        columns.append(lrp.attribute(given, target=generated[:, k]).relevance)
    return columns


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function gave."""
    begin = time.perf_counter()
    found = function()
    return time.perf_counter() - begin, found


def products(lrp: fxlrp.ConvertedModel, prompt: int) -> float:
    """Multiplications of linear layers when repeating, by those of one pass: an estimate of the ratio where they are
    all that counts (causal models).
    """
    model: Any = lrp.model
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n) - head
    lengths = [prompt + k for k in range(TOKENS)]
    repeated = sum(length * (2 * body + head) for length in lengths)
    return repeated / (lengths[-1] * (body + 2 * head + TOKENS * body))


def measure(
    build: Callable[[], nn.Module], prompt: int, rounds: int
) -> tuple[float, float, float, float, float | None]:
    """Median seconds of both ways, the median ratio of the rounds, the largest difference and ``products``."""
    torch.manual_seed(0)
    lrp = fxlrp.convert(build().eval(), "attnlrp")
    ids, generated = (torch.randint(3, 1000, (1, count)) for count in (prompt, TOKENS))
    lrp.attribute_generation({"input_ids": ids}, generated=generated)  # traces the model
    one_by_one(lrp, ids, generated[:, :2])
    times = []
    difference = 0.0
    for _ in range(rounds):
        repeated, columns = timed(lambda: one_by_one(lrp, ids, generated))
        together, result = timed(lambda: lrp.attribute_generation({"input_ids": ids}, generated=generated))
        times.append((repeated, together))
        for k, column in enumerate(columns):
            gap = (result[k].relevance - column).abs().max() / column.abs().max()
            difference = max(difference, float(gap))
    seconds = [statistics.median(way) for way in zip(*times, strict=True)]
    ratio = statistics.median(a / b for a, b in times)
    bound = None if lrp.config.is_encoder_decoder else products(lrp, prompt)
    return seconds[0], seconds[1], ratio, difference, bound


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure the models whose names hold this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "prompt", "repeated, s", "one pass, s", "ratio", "products", "largest difference")
    for name, build, prompt in (case for case in CASES if options.only in case[0]):
        repeated, together, ratio, difference, bound = measure(build, prompt, options.rounds)
        table.add_row(
            name,
            str(prompt),
            f"{repeated:.2f}",
            f"{together:.2f}",
            f"{ratio:.1f}",
            "" if bound is None else f"{bound:.1f}",
            f"{difference:.0e}",
        )
    Console(width=140).print(f"{TOKENS} generated tokens, one thread, float32, ruleset attnlrp", table)


if __name__ == "__main__":
    main()
