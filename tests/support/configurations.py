"""Random configurations of small transformers: heads, groups, sizes, windows, rotations, biases, experts, norms.

``draw(family, seed)`` gives a :class:`Drawn`: what a model is built from, and what it is fed. Equal seeds give equal
configurations, weights and inputs. Each family is one function that draws what its configuration class takes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.drawn import LABELS, PAD, Drawn, Side

#: At least as many as there is padding, so that a padded query on the right sees a token. A row of attention that sees
#: none is NaN in float64 models that are masked by its lowest number and softmaxed in float32.
WINDOWS = (4, 5, 6)


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
    return rng.choice((1, 1, 1, 1, 2))


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
    "bert": _bert,
    "vit": _vit,
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "cohere": _cohere,
    "modernbert": _modernbert,
    "bart": _bart,
    "gemma3": _gemma3,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2,
    "mixtral": _mixtral,
    "t5": _t5,
    "mamba": _mamba,
}


def draw(family: str, seed: int) -> Drawn:
    """The configuration of this family and number."""
    return FAMILIES[family](Random(f"{family} {seed}"), seed)


def covering(count: int, seeds: int) -> list[tuple[str, int]]:
    """``count`` of the first configurations of each family that differ most: one of each family, then any.

    Each is the one that adds most switches, in units of its layers, to those before it. Rotations that are scaled by
    the length at hand are none of them, since they are captured anew on each input.
    """
    switches = {(family, seed): draw(family, seed).switches for family in FAMILIES for seed in range(seeds)}
    pool = {key: found for key, found in switches.items() if ("rope_type", "dynamic") not in found}
    chosen: list[tuple[str, int]] = []
    seen: set[tuple[str, object]] = set()
    for family in [*FAMILIES, *[None] * (count - len(FAMILIES))]:
        left = [key for key in pool if key not in chosen and family in (key[0], None)]
        best = max(left, key=lambda key: len(pool[key] - seen) / draw(*key).config.get("num_hidden_layers", 1))
        chosen.append(best)
        seen |= pool[best]
    return chosen
