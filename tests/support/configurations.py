"""Random configurations of small transformers: heads, groups, sizes, windows, rotations, biases, experts, norms.

``draw(family, seed)`` gives a :class:`Drawn`: what a model is built from, and what it is fed. Equal seeds give equal
configurations, weights and inputs. Each family is one function that draws what its configuration class takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from fxlrp.testing import realistic
from tests.support.zoo import HEADS_OF

Side = Literal["right", "left"]
Inputs = dict[str, Tensor]

BATCH, LENGTH, PAD, FIRST_WORD, LABELS = 3, 7, 1, 4, 3
#: How many tokens each sample has where samples are padded.
FULL, KEPT = (7, 7, 7), (7, 4, 4)
#: At least as many as there is padding, so that a padded query on the right sees a token. A row of attention that sees
#: none is NaN in float64 models that are masked by its lowest number and softmaxed in float32.
WINDOWS = (4, 5, 6)


@dataclass(frozen=True)
class Drawn:
    """A configuration: ``kind`` of model (what its outputs mean), its ``head``, and what was drawn for it."""

    family: str
    seed: int
    head: str
    config: dict[str, Any]
    attention: str
    sides: tuple[Side, ...] = ("right", "left")
    positions: bool = False
    token_types: bool = False
    #: Whether attention that is spelled out takes its softmax in float32, whatever the type of the model.
    casts: bool = True

    @property
    def generates(self) -> bool:
        """Whether the outputs are of a next token."""
        return self.head in ("decoder", "seq2seq")

    @property
    def is_image(self) -> bool:
        """Whether the model sees pixels."""
        return self.head == "vision"

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model in eval mode, weights at a trained model's scale: neither attention nor gates are uniform."""
        config = transformers.AutoConfig.for_model(self.family, **self.config)
        config.architectures = []
        auto = HEADS.get(self.head) or HEADS_OF[self.head]  # type: ignore[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: nn.Module = auto.from_config(
                config, attn_implementation=None if self.attention == "none" else self.attention
            )
        return realistic(model.double().eval(), self.seed).to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float64, padding: Side | None = None) -> Inputs:
        """Three samples, of 7 tokens each or the second and third cut short; mask and positions are always given, so
        that one capture serves all.
        """
        rng = torch.Generator().manual_seed(self.seed)
        if self.is_image:
            size = self.config["image_size"]
            return {"pixel_values": torch.randn(BATCH, 3, size, size, generator=rng, dtype=torch.float64).to(dtype)}
        vocabulary = self.config["vocab_size"]
        ids = torch.randint(FIRST_WORD, vocabulary, (BATCH, LENGTH), generator=rng)
        mask = (torch.arange(LENGTH) < torch.tensor(FULL if padding is None else KEPT)[:, None]).long()
        mask = mask.flip(1) if padding == "left" else mask
        found = {"input_ids": ids.where(mask.bool(), torch.tensor(PAD)), "attention_mask": mask}
        if self.positions:
            found["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self.token_types:
            found["token_type_ids"] = torch.randint(0, 2, (BATCH, LENGTH), generator=rng)
        if self.head == "seq2seq":
            found["decoder_input_ids"] = torch.randint(FIRST_WORD, vocabulary, (BATCH, 4), generator=rng)
        return found

    def alone(self, side: Side) -> list[Inputs]:
        """The samples of a padded batch, each by itself without its padding."""
        given = self.inputs(padding=side)
        rows = given["attention_mask"].bool()
        return [{n: cut(v[i : i + 1], row) for n, v in given.items()} for i, row in enumerate(rows)]

    @property
    def _sees_nothing(self) -> bool:
        return self.head == "decoder" and self.attention == "eager" and self.casts

    def own(self, side: Side, dtype: torch.dtype) -> str:
        """Why padding on this side changes the untouched model, if it does: fxlrp is asked nothing there."""
        rope = self.config.get("rope_parameters", {})
        limits = {
            "dynamic": self.config.get("max_position_embeddings"),
            "longrope": rope.get("original_max_position_embeddings"),
        }
        limit = limits.get(rope.get("rope_type"))
        if limit is not None and limit < LENGTH:
            return "a scaling of rotations by length follows the longest sample of the batch"
        if side == "left" and self._sees_nothing and dtype == torch.float64:
            return (
                "a padded query sees no token: float64's lowest number overflows in the softmax's float32, and what "
                "comes back through it, or reads it in the next layer, is NaN"
            )
        if side == "left" and self.config.get("conv_kernel") and self.config["use_bias"]:
            return "the bias of a projection reaches the first tokens through the convolution that follows"
        return ""


def cut(value: Tensor, kept: Tensor) -> Tensor:
    """One sample's tokens that are ``kept``, of a value that has an entry for each."""
    return value[:, kept] if value.ndim > 1 and value.shape[1] == len(kept) else value


HEADS: dict[str, Any] = {"tokens": transformers.AutoModelForTokenClassification}


# ---------------------------------------------------------------------------------------------- parts of them
def _words(rng: Random) -> dict[str, Any]:
    """Vocabulary and special ids."""
    return {"vocab_size": rng.choice((23, 31, 40)), "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}


def _heads(rng: Random) -> tuple[int, int, int]:
    """Heads, groups of keys and values, size of a head."""
    heads, groups = rng.choice(((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (3, 1), (6, 2)))
    return heads, groups, rng.choice((4, 6, 8))


def _whole(rng: Random) -> dict[str, Any]:
    """Layers, heads, sizes, where a head is the hidden size by the number of heads."""
    heads, _, size = _heads(rng)
    return {
        "hidden_size": heads * size,
        "num_hidden_layers": _layers(rng),
        "num_attention_heads": heads,
        "intermediate_size": rng.choice((12, 20, 28)),
    }


def _grouped(rng: Random) -> dict[str, Any]:
    """Layers, heads, groups, sizes, where a head has a size of its own."""
    heads, groups, size = _heads(rng)
    return _words(rng) | {
        "hidden_size": rng.choice((12, 16, 20, 24)),
        "num_hidden_layers": _layers(rng),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "intermediate_size": rng.choice((12, 20, 28)),
        "hidden_act": _activation(rng),
        "rms_norm_eps": _eps(rng),
        "tie_word_embeddings": _coin(rng),
    }


def _activation(rng: Random) -> str:
    return rng.choice(("silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new", "quick_gelu"))


def _eps(rng: Random) -> float:
    return rng.choice((1e-12, 1e-6, 1e-5, 1e-2))


def _layers(rng: Random) -> int:
    """Two now and then: capturing is what takes time."""
    return rng.choice((1, 1, 2))


def _coin(rng: Random) -> bool:
    return rng.random() < 0.5


def _rotation(rng: Random, size: int, partial: float | None = None) -> dict[str, Any]:
    """Rotary positions and the length that they are made for, which some scalings exceed."""
    kind = rng.choice(("dynamic", *("default", "linear", "yarn", "llama3", "longrope") * 2))  # the first is slow
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": rng.choice((100.0, 10000.0))}
    made_for, rotated = 64, size
    if partial is not None:
        rope["partial_rotary_factor"] = partial
        rotated = int(size * partial)
    if kind != "default":
        rope["factor"] = rng.choice((2.0, 4.0))
    if kind == "dynamic":
        made_for = rng.choice((5, 64))
    if kind in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = made_for = rng.choice((5, 16))
        made_for = int(made_for * rope["factor"])
    if kind == "yarn" and _coin(rng):
        rope |= {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            rope[name] = [round(rng.uniform(1, 3), 2) for _ in range(rotated // 2)]
    return {"rope_parameters": rope, "max_position_embeddings": made_for}


def _window(rng: Random, layers: int) -> dict[str, Any]:
    """A window, and the layers that look through it."""
    kinds = [rng.choice(("sliding_attention", "full_attention")) for _ in range(layers)]
    return {"sliding_window": rng.choice(WINDOWS), "layer_types": kinds}


def _implementation(rng: Random) -> str:
    return rng.choice(("eager", "sdpa"))


# --------------------------------------------------------------------------------------------------- decoders
Draw = Callable[[Random, int], Drawn]


def _decoder(family: str, seed: int, rng: Random, config: dict[str, Any], **more: Any) -> Drawn:
    given = {"positions": True, "attention": _implementation(rng)} | more
    return Drawn(family, seed, "decoder", config, **given)


def _llama(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config |= {"attention_bias": _coin(rng), "mlp_bias": _coin(rng)} | _rotation(rng, config["head_dim"])
    return _decoder("llama", seed, rng, config)


def _mistral(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config |= {"sliding_window": rng.choice((None, *WINDOWS))} | _rotation(rng, config["head_dim"])
    return _decoder("mistral", seed, rng, config)


def _qwen3(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config |= {"attention_bias": _coin(rng)} | _rotation(rng, config["head_dim"])
    if _coin(rng):
        config |= {"use_sliding_window": True} | _window(rng, config["num_hidden_layers"])
    return _decoder("qwen3", seed, rng, config)


def _gemma2(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config["hidden_activation"] = config.pop("hidden_act")
    config |= {
        "query_pre_attn_scalar": rng.choice((4, 8, 16)),
        "attn_logit_softcapping": rng.choice((None, 1.5, 4.0)),
        "final_logit_softcapping": rng.choice((None, 3.0, 20.0)),
        "attention_bias": _coin(rng),
    }
    config |= _window(rng, config["num_hidden_layers"]) | _rotation(rng, config["head_dim"])
    return _decoder("gemma2", seed, rng, config, attention="eager")  # caps of scores have no fused form


def _gemma3(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config["hidden_activation"] = config.pop("hidden_act")
    config |= {"query_pre_attn_scalar": rng.choice((4, 8, 16)), "max_position_embeddings": 64}
    config |= _window(rng, config["num_hidden_layers"])
    config["rope_parameters"] = {
        kind: {"rope_type": "linear", "factor": rng.choice((1.0, 4.0)), "rope_theta": rng.choice((100.0, 10000.0))}
        for kind in ("sliding_attention", "full_attention")
    }
    return _decoder("gemma3_text", seed, rng, config)


def _gpt2(rng: Random, seed: int) -> Drawn:
    sizes = _whole(rng)
    config = _words(rng) | {
        "n_embd": sizes["hidden_size"],
        "n_layer": sizes["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "n_inner": rng.choice((None, sizes["intermediate_size"])),
        "n_positions": 16,
        "activation_function": _activation(rng),
        "layer_norm_epsilon": _eps(rng),
        "scale_attn_weights": _coin(rng),
        "scale_attn_by_inverse_layer_idx": _coin(rng),
        "tie_word_embeddings": _coin(rng),
    }
    return _decoder("gpt2", seed, rng, config, casts=False)


def _gpt_neox(rng: Random, seed: int) -> Drawn:
    config = _words(rng) | _whole(rng)
    size = config["hidden_size"] // config["num_attention_heads"]
    config |= {
        "hidden_act": _activation(rng),
        "layer_norm_eps": _eps(rng),
        "use_parallel_residual": _coin(rng),
        "attention_bias": _coin(rng),
        "tie_word_embeddings": _coin(rng),
    } | _rotation(rng, size, rng.choice((0.5, 1.0)) if size != 6 else 1.0)
    return _decoder("gpt_neox", seed, rng, config)


def _opt(rng: Random, seed: int) -> Drawn:
    config = _words(rng) | _whole(rng)
    config["ffn_dim"] = config.pop("intermediate_size")
    config |= {
        "max_position_embeddings": 16,
        "activation_function": _activation(rng),
        "do_layer_norm_before": _coin(rng),
        "word_embed_proj_dim": rng.choice((config["hidden_size"], 10)),
        "enable_bias": _coin(rng),
        "layer_norm_elementwise_affine": _coin(rng),
        "tie_word_embeddings": _coin(rng),
    }
    return _decoder("opt", seed, rng, config, positions=False)  # counts tokens by its mask


def _cohere(rng: Random, seed: int) -> Drawn:
    config = _grouped(rng)
    config["layer_norm_eps"] = config.pop("rms_norm_eps")
    config["hidden_size"] = config["num_attention_heads"] * config["head_dim"]
    config |= {
        "logit_scale": rng.choice((0.0625, 1.0)),
        "attention_bias": _coin(rng),
        "use_qk_norm": _coin(rng),
    } | _rotation(rng, config["head_dim"])
    return _decoder("cohere", seed, rng, config)


def _experts(rng: Random) -> dict[str, Any]:
    """Experts by "batched_mm": PyTorch's grouped_mm, the default, takes no float64."""
    experts = rng.choice((2, 3, 4))
    return {"num_experts_per_tok": rng.randint(1, experts), "num": experts, "experts_implementation": "batched_mm"}


def _mixtral(rng: Random, seed: int) -> Drawn:
    config, experts = _grouped(rng), _experts(rng)
    config["num_local_experts"] = experts.pop("num")
    config |= {"sliding_window": rng.choice((None, *WINDOWS))} | experts | _rotation(rng, config["head_dim"])
    return _decoder("mixtral", seed, rng, config)


def _qwen3_moe(rng: Random, seed: int) -> Drawn:
    config, experts = _grouped(rng), _experts(rng)
    config["num_experts"] = experts.pop("num")
    config |= {
        "moe_intermediate_size": rng.choice((8, 12)),
        "norm_topk_prob": _coin(rng),
        "mlp_only_layers": rng.choice(([], [0])),
        "attention_bias": _coin(rng),
    }
    config |= experts | _rotation(rng, config["head_dim"])
    return _decoder("qwen3_moe", seed, rng, config)


def _mamba(rng: Random, seed: int) -> Drawn:
    config = _words(rng) | {
        "hidden_size": rng.choice((12, 16)),
        "state_size": rng.choice((2, 4, 8)),
        "num_hidden_layers": _layers(rng),
        "expand": rng.choice((1, 2)),
        "conv_kernel": rng.choice((2, 4)),
        "time_step_rank": rng.choice((2, 3)),
        "use_bias": _coin(rng),
        "use_conv_bias": _coin(rng),
        "hidden_act": rng.choice(("silu", "gelu")),
        "layer_norm_epsilon": _eps(rng),
        "tie_word_embeddings": _coin(rng),
    }
    return _decoder("mamba", seed, rng, config, positions=False, attention="none")


# ---------------------------------------------------------------------------------- encoders, both, and images
def _bert(rng: Random, seed: int) -> Drawn:
    head = rng.choice(("encoder", "tokens"))
    config = _words(rng) | _whole(rng)
    config |= {
        "num_labels": LABELS,
        "max_position_embeddings": 16,
        "hidden_act": _activation(rng),
        "layer_norm_eps": _eps(rng),
    }
    sides: tuple[Side, ...] = ("right", "left") if head == "tokens" else ("right",)  # the first token is pooled
    attention = _implementation(rng)
    return Drawn("bert", seed, head, config, attention, sides, positions=True, token_types=_coin(rng))


def _modernbert(rng: Random, seed: int) -> Drawn:
    head = rng.choice(("encoder", "tokens"))
    config = _words(rng) | _whole(rng)
    layers = config["num_hidden_layers"]
    config |= {
        "num_labels": LABELS,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "max_position_embeddings": 64,
        "hidden_activation": _activation(rng),
        "norm_eps": _eps(rng),
        "local_attention": rng.choice((6, 8)),
        "layer_types": [rng.choice(("sliding_attention", "full_attention")) for _ in range(layers)],
        "classifier_pooling": rng.choice(("cls", "mean")),
        **{name: _coin(rng) for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")},
    }
    pooled_first = head == "encoder" and config["classifier_pooling"] == "cls"
    sides: tuple[Side, ...] = ("right",) if pooled_first else ("right", "left")
    return Drawn("modernbert", seed, head, config, _implementation(rng), sides, positions=True)


def _t5(rng: Random, seed: int) -> Drawn:
    heads, _, size = _heads(rng)
    config = _words(rng) | {
        "d_model": rng.choice((12, 16, 20)),
        "d_kv": size,
        "num_heads": heads,
        "d_ff": rng.choice((12, 20)),
        "num_layers": 1,
        "num_decoder_layers": 1,
        "relative_attention_num_buckets": rng.choice((4, 8)),
        "relative_attention_max_distance": rng.choice((6, 16)),
        "layer_norm_epsilon": _eps(rng),
        "feed_forward_proj": rng.choice(("relu", "gated-gelu", "gated-silu")),
        "tie_word_embeddings": _coin(rng),
    }
    return Drawn("t5", seed, "seq2seq", config, _implementation(rng))


def _bart(rng: Random, seed: int) -> Drawn:
    heads, _, size = _heads(rng)
    config = _words(rng) | {
        "d_model": heads * size,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": rng.choice((12, 20)),
        "decoder_ffn_dim": rng.choice((12, 20)),
        "max_position_embeddings": 16,
        "activation_function": _activation(rng),
        "scale_embedding": _coin(rng),
        "tie_word_embeddings": _coin(rng),
    }
    return Drawn("bart", seed, "seq2seq", config, _implementation(rng), ("right",))  # positions count from the left


def _vit(rng: Random, seed: int) -> Drawn:
    patch = rng.choice((4, 8))
    config = _whole(rng) | {
        "num_labels": LABELS,
        "patch_size": patch,
        "image_size": patch * rng.choice((2, 3)),
        "hidden_act": _activation(rng),
        "layer_norm_eps": _eps(rng),
        "qkv_bias": _coin(rng),
    }
    return Drawn("vit", seed, "vision", config, _implementation(rng), ())


FAMILIES: dict[str, Draw] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "cohere": _cohere,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "mamba": _mamba,
    "bert": _bert,
    "modernbert": _modernbert,
    "t5": _t5,
    "bart": _bart,
    "vit": _vit,
}


def draw(family: str, seed: int) -> Drawn:
    """The configuration of this family and number."""
    return FAMILIES[family](Random(f"{family} {seed}"), seed)
