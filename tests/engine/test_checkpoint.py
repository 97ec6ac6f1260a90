"""attribute(checkpoint=): blocks that run again on the way back give the same relevance, but for rounding."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from benchmarks.measure import peak
from fxlrp.engine import passing
from fxlrp.rewrite.blocks import Block
from tests.support import small_models

#: One of each kind of message, reading and number of passes; ``make slow`` tries all rulesets.
SOME = (
    "attnlrp",
    "attnlrp-relevance",
    "chefer2021-bert",
    "cp-lrp",
    "deeplift-rescale",
    "epsilon",
    "guided-backprop",
    "integrated-gradients",
)


@pytest.mark.parametrize("model", ["llama", "bert", "vit"])
@pytest.mark.parametrize("rules", SOME)
def test_blocks_change_no_number(model: str, rules: str) -> None:
    _compare(model, rules)


@pytest.mark.slow
@pytest.mark.parametrize("model", small_models.MODELS)
@pytest.mark.parametrize("rules", sorted({*fxlrp.rulesets()} - {*SOME}))
def test_blocks_change_no_number_under_any_ruleset(model: str, rules: str) -> None:
    _compare(model, rules)


def _compare(model: str, rules: str) -> None:
    def in_blocks(lrp: fxlrp.ConvertedModel, given: dict[str, Tensor]) -> fxlrp.Attribution:
        return lrp.attribute(given, checkpoint="blocks")

    # Messages that meet at one value may be added up in another order.
    usual, found = small_models.runs_alike(model, rules, in_blocks, rtol=1e-10, atol=1e-13, logits=1e-13)
    # Stretches run LayerNorm fused; in blocks, whose borders lie elsewhere, some of it is spelled out.
    if not small_models.stretches(model, rules):
        assert torch.equal(found.outputs.logits, usual.outputs.logits)


@pytest.mark.parametrize("rules", ["attnlrp", "attnlrp-relevance", "epsilon"])
def test_a_block_is_a_sublayer_of_a_transformer(rules: str) -> None:
    lrp = small_models.converted("llama").with_ruleset(rules)
    lrp.attribute(small_models.inputs("llama"))
    captured = lrp.conversion.last
    assert captured is not None
    _, rewritten = lrp.conversion.rewritten(captured.folded(lrp.ruleset.fold))
    blocks = [node for node in rewritten.blocks.graph.nodes if isinstance(node.target, Block)]
    assert len(blocks) == 4  # attention and feed-forward of two layers


@lru_cache
def _deep() -> tuple[fxlrp.ConvertedModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4, use_cache=False
    )
    lrp = fxlrp.convert(transformers.LlamaForCausalLM(config).eval())
    given = {"input_ids": torch.randint(0, 11, (1, 128))}
    for _ in range(4):  # a graph is compared with its model on the first inputs, which takes memory of its own
        lrp.attribute(given)
    return lrp, given


#: What blocks take of the whole, at most: near a quarter is kept at the borders of eight layers of two blocks each, and
#: in one block. In relevance little is kept anyway, and attention, run again layer by layer, is the peak of both.
SHARES = {"attnlrp": 0.45, "attnlrp-relevance": 0.7, "epsilon": 0.5}


@pytest.mark.parametrize("rules", SHARES)
def test_blocks_hold_a_fraction_of_the_memory(rules: str) -> None:
    lrp, given = _deep()[0].with_ruleset(rules), _deep()[1]
    lrp.attribute(given)
    lrp.attribute(given, checkpoint="blocks")
    whole, blocks = (peak(lambda how=how: lrp.attribute(given, checkpoint=how)) for how in (None, "blocks"))
    assert blocks < SHARES[rules] * whole


def test_auto_takes_blocks_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    lrp, given = _deep()
    lrp.attribute(given)
    whole = peak(lambda: lrp.attribute(given, checkpoint="auto"))
    monkeypatch.setattr(passing, "free_memory", lambda device: 1e6)
    lrp.attribute(given, checkpoint="auto")
    assert peak(lambda: lrp.attribute(given, checkpoint="auto")) < 0.45 * whole


@pytest.mark.parametrize("rules", ["attnlrp", "attnlrp-relevance"])
def test_the_estimate_is_near_what_is_measured(rules: str) -> None:
    lrp, given = _deep()[0].with_ruleset(rules), _deep()[1]
    lrp.attribute(given)
    conversion, captured = lrp.conversion, lrp.conversion.last
    assert captured is not None
    captured = captured.folded(lrp.ruleset.fold)
    _, rewritten = conversion.rewritten(captured)
    for length in (128, 256):  # the graph was captured at the first
        longer = {"input_ids": torch.zeros(1, length, dtype=torch.long)}
        arguments = conversion.arguments(captured.program, rewritten, longer)
        for _ in range(3):
            lrp.attribute(longer)
        measured = peak(lambda given=longer: lrp.attribute(given))
        kept = rewritten.kept(arguments)
        assert kept is not None
        assert measured / 1.5 < kept.whole < measured * 1.5
        assert kept.in_blocks < SHARES[rules] * kept.whole


class Dropping(nn.Module):
    """Draws random numbers in every block, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.dropout(layer(x).relu(), 0.5)
        return x


def test_blocks_draw_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    lrp, x = fxlrp.convert(Dropping().eval(), "epsilon"), torch.randn(2, 6)
    whole = lrp.attribute(x, target=1, random_seed=3)
    state = torch.get_rng_state()
    found = lrp.attribute(x, target=1, random_seed=3, checkpoint="blocks")
    assert torch.equal(found.relevance, whole.relevance)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(lrp.attribute(x, target=1, random_seed=4, checkpoint="blocks").relevance, whole.relevance)


def test_relevance_of_modules_within_blocks() -> None:
    lrp, given = small_models.converted("bert").with_ruleset("attnlrp"), small_models.inputs("bert")
    whole, found = (lrp.attribute(given, at="bert.encoder.layer.*", checkpoint=how) for how in (None, "blocks"))
    assert whole.at
    assert all(torch.equal(found.at[path], value) for path, value in whole.at.items())


def test_a_network_without_borders_runs_as_it_is() -> None:
    lrp = fxlrp.convert(nn.Linear(3, 2).eval(), "epsilon")
    x = torch.randn(2, 3)
    assert torch.equal(lrp.attribute(x, checkpoint="blocks").relevance, lrp.attribute(x).relevance)


def test_what_is_no_way_to_keep_values() -> None:
    lrp = fxlrp.convert(nn.Linear(3, 2).eval(), "epsilon")
    with pytest.raises(fxlrp.InputError, match="'layers' is none of None, 'blocks' and 'auto'"):
        lrp.attribute(torch.randn(2, 3), checkpoint="layers")  # type: ignore[arg-type]


def test_a_graph_is_rewritten_once_however_its_passes_run() -> None:
    torch.manual_seed(0)
    lrp, x = (
        fxlrp.convert(nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)).eval(), "epsilon"),
        torch.randn(2, 4),
    )
    for options in ({}, {"outputs": False}, {"checkpoint": "blocks"}, {"random_seed": 1}) * 2:
        lrp.attribute(x, target=1, **options)
    assert len(lrp.conversion._made.rewrites) == 1
    (_, rewritten), *_ = lrp.conversion._made.rewrites.values()
    lrp.attribute(x, target=1, outputs=False)
    assert next(iter(lrp.conversion._made.rewrites.values()))[1] is rewritten
