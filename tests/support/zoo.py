"""The model zoo: tiny, random models of every architecture that fxlrp promises to convert, no download.

`ZOO[name].build()` gives a float64 module in eval mode with parameters at a trained model's scale, and
`ZOO[name].inputs()` keyword arguments for its forward.  One line of the table per architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

import fxlrp
from fxlrp.testing.weights import realistic

Family = Literal["encoder", "decoder", "seq2seq", "vision", "plain"]
Padding = Literal["right", "left"] | None
Inputs = dict[str, Tensor]

VOCAB, HIDDEN, HEADS, LABELS, IMAGE = 97, 32, 4, 5, 32
PAD = 1  # not 0, so that code which assumes a zero pad id is found out
FIRST_WORD = 4  # ids below it are special: begin 0, pad 1, end 2, mask 3


# --------------------------------------------------------------------------------------------------- inputs
def _mask(batch: int, length: int, padding: Padding) -> Tensor:
    """1 where there is a token; sample 0 is full, each next one two tokens shorter, to half at the least."""
    kept = torch.tensor([length - min(2 * row, length // 2) for row in range(batch)])
    mask = (torch.arange(length) < kept[:, None]).long()
    return mask.flip(1) if padding == "left" else mask


def _ids(batch: int, length: int, rng: torch.Generator, padding: Padding, name: str = "") -> Inputs:
    ids = torch.randint(FIRST_WORD, VOCAB, (batch, length), generator=rng)
    if padding is None:
        return {f"{name}input_ids": ids}
    mask = _mask(batch, length, padding)
    return {f"{name}input_ids": ids.where(mask.bool(), torch.tensor(PAD)), f"{name}attention_mask": mask}


def _text(batch: int, length: int, rng: torch.Generator, padding: Padding) -> Inputs:
    return _ids(batch, length, rng, padding)


def _text_pair(batch: int, length: int, rng: torch.Generator, padding: Padding) -> Inputs:
    return _ids(batch, length, rng, padding) | _ids(batch, max(2, length - 2), rng, None, "decoder_")


def _image(batch: int, length: int, rng: torch.Generator, padding: Padding) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE, generator=rng, dtype=torch.float64)}


def _floats(*shape: int) -> Callable[[int, int, torch.Generator, Padding], Inputs]:
    def draw(batch: int, length: int, rng: torch.Generator, padding: Padding) -> Inputs:
        return {"x": torch.randn(batch, *shape, generator=rng, dtype=torch.float64)}

    return draw


def _sequence(batch: int, length: int, rng: torch.Generator, padding: Padding) -> Inputs:
    floats = {"x": torch.randn(batch, length, HIDDEN, generator=rng, dtype=torch.float64)}
    return floats if padding is None else floats | {"padding": _mask(batch, length, padding).eq(0)}


# -------------------------------------------------------------------------------------------- plain modules
class TransformerClassifier(nn.Module):
    """`nn.TransformerEncoder`, mean pooling, linear head.  x: [batch, tokens, 32], padding: True there."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            HIDDEN, HEADS, 48, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits, [batch, 5]."""
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


class AttentionBlock(nn.Module):
    """Attention as in a notebook: fused qkv, masked_fill, softmax, residual.  x: [batch, tokens, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits, [batch, 5]."""
        batch, tokens, hidden = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, HEADS, hidden // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(hidden // HEADS)
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None, :], float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, hidden)
        return self.head((x + self.out(mixed)).mean(1))


class MLP(nn.Sequential):
    """Two hidden layers with ReLU.  x: [batch, 12]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, LABELS))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 5]."""
        return super().forward(x)


class CNN(nn.Sequential):
    """Convolutions, batch norm, ReLU, max and average pooling.  x: [batch, 3, 16, 16]."""

    def __init__(self) -> None:
        first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(3)]
        super().__init__(*first, *second, nn.Flatten(), nn.Linear(16, LABELS))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 5]."""
        return super().forward(x)


# ------------------------------------------------------------------------------------------------ the table
@dataclass(frozen=True)
class Case:
    """One architecture: how to make the model, and what it is fed.

    `make(attention)` returns the freshly initialised model, `feed(batch, length, rng, padding)` its inputs,
    and `paddings` lists those under which the model's own outputs are finite (with its default attention).
    """

    name: str
    family: Family
    make: Callable[[str | None], nn.Module]
    feed: Callable[[int, int, torch.Generator, Padding], Inputs]
    paddings: tuple[Padding, ...]

    def build(self, seed: int = 0, attention: str | None = None) -> nn.Module:
        """The float64 model in eval mode, weights at scale.  attention: "eager", "sdpa", None = default."""
        with torch.random.fork_rng(
            devices=[]
        ):  # constructors draw from the global generator before `realistic` redraws
            torch.manual_seed(seed)
            return realistic(self.make(attention).double().eval(), seed)

    def inputs(self, batch: int = 2, length: int = 7, seed: int = 0, padding: Padding = "right") -> Inputs:
        """Forward arguments.  padding=None: every sample is full, no mask is given.  Images ignore length."""
        return self.feed(batch, length, torch.Generator().manual_seed(seed), padding)


HEADS_OF: dict[Family, Any] = {
    "encoder": transformers.AutoModelForSequenceClassification,
    "decoder": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "vision": transformers.AutoModelForImageClassification,
}
FEEDS = {"encoder": _text, "decoder": _text, "seq2seq": _text_pair, "vision": _image}
SPECIAL = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 48}
WORDS = SPECIAL | SMALL | {"max_position_embeddings": 64}
GROUPED = WORDS | {"num_key_value_heads": 2, "head_dim": HIDDEN // HEADS}
PIXELS = {"image_size": IMAGE, "num_labels": LABELS}
PATCHES = PIXELS | SMALL | {"patch_size": 8}
TWO_SIDED = SPECIAL | {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
ANY: tuple[Padding, ...] = ("right", "left", None)
# Eager attention casts scores to float32 for the softmax.  Masked by float64's lowest value, the row of a
# padded query overflows to -inf throughout, and transformers itself returns NaN.  In a float32 model it does
# not.  For the same reason a sliding window must be longer than the padding on the right.
NO_LEFT: tuple[Padding, ...] = ("right", None)
LOCAL_AND_GLOBAL = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}


def _case(
    name: str, family: Family, common: dict[str, Any], paddings: tuple[Padding, ...] = ANY, **special: Any
) -> Case:
    labels = {"num_labels": LABELS} if family == "encoder" else {}

    def make(attention: str | None) -> nn.Module:
        chosen = {} if attention is None else {"attn_implementation": attention}
        config = transformers.AutoConfig.for_model(name, **common | special | labels)
        config.architectures = []  # DeiT's configuration says None, which the auto class does not take
        return HEADS_OF[family].from_config(config, **chosen)

    return Case(name, family, make, FEEDS[family], paddings)


def _plain(name: str, module: Callable[[], nn.Module], feed: Callable[..., Inputs]) -> Case:
    return Case(name, "plain", lambda attention: module(), feed, ANY)


ZOO: dict[str, Case] = {
    case.name: case
    for case in (
        _case("bert", "encoder", WORDS),
        _case("roberta", "encoder", WORDS),
        _case("xlm-roberta", "encoder", WORDS),
        _case("distilbert", "encoder", SPECIAL, dim=HIDDEN, n_layers=2, n_heads=HEADS, hidden_dim=48),
        _case("electra", "encoder", WORDS, embedding_size=16),
        _case("albert", "encoder", WORDS, embedding_size=16),
        _case(
            "deberta-v2",
            "encoder",
            WORDS,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            conv_kernel_size=3,
        ),
        _case("modernbert", "encoder", WORDS, local_attention=4, global_attn_every_n_layers=2, cls_token_id=0),
        _case("mpnet", "encoder", WORDS),
        _case("gpt2", "decoder", SPECIAL, n_embd=HIDDEN, n_layer=2, n_head=HEADS, n_positions=64),
        _case("gpt_neox", "decoder", WORDS),
        _case("gptj", "decoder", SPECIAL, n_embd=HIDDEN, n_layer=2, n_head=HEADS, n_positions=64, rotary_dim=4),
        _case("opt", "decoder", WORDS, ffn_dim=48, word_embed_proj_dim=HIDDEN),
        _case("bloom", "decoder", SPECIAL, NO_LEFT, hidden_size=HIDDEN, n_layer=2, n_head=HEADS),
        _case("falcon", "decoder", WORDS, alibi=False),
        _case("llama", "decoder", GROUPED),
        _case("mistral", "decoder", GROUPED, sliding_window=5),
        _case("qwen2", "decoder", GROUPED),
        _case("qwen3", "decoder", GROUPED),
        _case("gemma", "decoder", GROUPED),
        _case(
            "gemma2",
            "decoder",
            GROUPED,
            NO_LEFT,
            **LOCAL_AND_GLOBAL,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=20.0,
        ),
        _case("gemma3_text", "decoder", GROUPED, **LOCAL_AND_GLOBAL, query_pre_attn_scalar=8),
        _case("phi", "decoder", WORDS),
        _case("phi3", "decoder", GROUPED),
        _case("olmo2", "decoder", GROUPED),
        _case("cohere", "decoder", GROUPED),
        _case("stablelm", "decoder", GROUPED),
        _case("starcoder2", "decoder", GROUPED),
        # Experts by "batched_mm": PyTorch's grouped_mm, the default, takes no float64.
        _case(
            "mixtral",
            "decoder",
            GROUPED,
            num_local_experts=4,
            num_experts_per_tok=2,
            experts_implementation="batched_mm",
        ),
        _case(
            "qwen3_moe",
            "decoder",
            GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            experts_implementation="batched_mm",
        ),
        _case("mamba", "decoder", SPECIAL, hidden_size=HIDDEN, num_hidden_layers=2, state_size=8),
        _case(
            "t5",
            "seq2seq",
            SPECIAL,
            d_model=HIDDEN,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=HEADS,
            relative_attention_num_buckets=8,
        ),
        _case("bart", "seq2seq", TWO_SIDED),
        _case("pegasus", "seq2seq", TWO_SIDED),
        _case("vit", "vision", PATCHES),
        _case("deit", "vision", PATCHES),
        _case("beit", "vision", PATCHES, use_relative_position_bias=True),
        _case(
            "swin",
            "vision",
            PIXELS,
            patch_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        _case("dinov2", "vision", PATCHES),
        _case("convnext", "vision", PIXELS, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1]),
        _case("resnet", "vision", PIXELS, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]),
        _plain("transformer_encoder", TransformerClassifier, _sequence),
        _plain("transformer_encoder_norm_first", lambda: TransformerClassifier(norm_first=True), _sequence),
        _plain("mlp", MLP, _floats(12)),
        _plain("cnn", CNN, _floats(3, 16, 16)),
        _plain("attention", AttentionBlock, _sequence),
    )
}


@cache
def converted(name: str, attention: str | None = None) -> fxlrp.ConvertedModel:
    """The model under "gradient", one for all tests of a session: ``with_ruleset`` takes its graphs over.

    For tests that leave its weights alone and do not count its captures.
    """
    return fxlrp.convert(ZOO[name].build(attention=attention), "gradient")
