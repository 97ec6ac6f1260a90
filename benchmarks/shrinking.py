"""Small configurations: rules on the names of a configuration's fields say what each field is shrunk to.

Nothing here knows a model; :data:`benchmarks.special.SPECIAL` is the short table of what the rules get wrong.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers

VOCABULARY = 128
FIRST_WORD = 64  # ids below it are special: pad, begin, end, and what a configuration calls tokens of its own
BEGIN, PAD, END = 0, 1, 2
LABELS = 5
DEEPEST = 5  # layers, where so many are needed to have one of each kind


@dataclass(frozen=True)
class Sizes:
    """What the fields of a configuration are shrunk to."""

    width: int = 32
    heads: int = 4
    groups: int = 2  # key/value heads
    layers: int = 2
    experts: int = 4
    image: int = 32
    growth: float = 1.0  # of widths that are listed stage by stage

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.width // self.heads

    @property
    def inner(self) -> int:
        """The width inside a feed-forward block."""
        return 2 * self.width


VARIANTS = (Sizes(), Sizes(width=64, heads=8, groups=4, layers=3, experts=6, image=64, growth=1.5))

Shrink = Callable[[int, Sizes], int]


def _keep(value: int, sizes: Sizes) -> int:
    return value


def _most(limit: int) -> Shrink:
    return lambda value, sizes: min(value, limit)


def _exactly(size: int) -> Shrink:
    return lambda value, sizes: size


def _heads(value: int, sizes: Sizes) -> int:
    return 1 << min(value, sizes.heads).bit_length() - 1  # a power of two, so that it divides every width


def staged(value: int, sizes: Sizes) -> int:
    """The width of one stage among several: equal widths stay equal, larger ones larger."""
    return value if value <= 4 else 8 * math.ceil(sizes.growth * math.sqrt(value) / 8)


def _width(value: int, sizes: Sizes) -> int:
    return sizes.width if value > 4 else value


#: Field name -> the new value of each of its integers. First match wins.
RULES: tuple[tuple[str, Shrink], ...] = (
    (r"vocab_size_or_config_json|^type_vocab_size$|vocab_offset", _keep),
    (r"vocab", _exactly(VOCABULARY)),
    (r"^(num_labels|num_classes)$", _exactly(LABELS)),
    (r"max_source_positions", _most(24)),
    (r"max_(\w*_)?pos|n_positions|n_ctx|max_target_positions|max_seq|max_length|^seq_length", _most(96)),
    (r"^pos_emb_", _most(16)),
    (r"tokens_per_image|image_seq_len", _most(4)),
    (r"shared_experts$", _most(1)),
    (r"experts$|num_zero_experts", lambda value, sizes: min(value, sizes.experts)),
    (r"experts_per_tok|top_?k$|^moe_k$", _most(2)),
    (r"^n_group$|topk_group|num_expert_group", _exactly(1)),
    (r"^n(um)?_groups$|mamba_n_?groups", _most(2)),
    (r"period|interval|every_n|sparse_step|sliding_window_pattern|layer_freq|^layer_group_size", _most(2)),
    (r"layer_offset|first_k_dense|num_dense_layers", _most(1)),
    (r"shared_layers", _exactly(0)),
    (r"(key_value|kv)_heads|n_head_kv|multi_query_group", lambda value, sizes: min(value, sizes.groups)),
    (r"head_?(dim|size)|d_head|d_kv|dim_head|key_dim|query_pre_attn", lambda value, sizes: sizes.head),
    (r"rotary_dim", lambda value, sizes: sizes.head // 2),
    (r"heads(_per_layer)?$|n_heads?$|attention_heads", _heads),
    (r"lora_rank|time_step_rank|dt_rank|_rank$", _most(8)),
    (r"mel_bins|^feature_size|feat_size|n_mels", _most(16)),
    (r"num_conv_pos|num_latents", _most(16)),
    (r"num_frames", _most(2)),
    (r"num_quer|quer(y|ies)_num|num_denoising", _most(8)),
    (
        r"num_channels|kernel|stride|dilation|padding|pool|conv_L|_d_conv|expand|ratio|offset|multipl|factor|groups$",
        _keep,
    ),
    (r"encoder_blocks|^n_window", _keep),
    (r"^depths$|layer_depths|layers_per|repeats|stage_num_blocks|stage_numb_of_layers", _most(1)),
    (r"layers$|n_layers?$|^depth$|num_blocks", lambda value, sizes: min(value, sizes.layers)),
    (r"sliding_window|local_attention|attention_window|chunk_(size|len)|^block_size", _most(8)),
    (r"chunk_\w*context", _most(2)),
    (r"^context_length$", _most(128)),
    (r"window", lambda value, sizes: min(value, 4) if value < 64 else 32),  # of patches or of pixels
    (r"image_size|input_size|img_size", lambda value, sizes: sizes.image),
    (r"patch_size|unit_size", _most(8)),
    (r"num_positions|relative_attention_max|bins$", _most(16)),
    (r"buckets", _most(32)),
    (
        r"intermediate|ffn|d_ff|n_inner|mlp_dim|feedforward|d_inner|dff|dim_ff",
        lambda value, sizes: sizes.inner if value > 4 else value,
    ),
    (r"channels", staged),
    (r"hidden|d_model|n_embd|embed|emb_dim|^dim$|_dim$|width|projection|neck|_size$|filters|_ssm$", _width),
    (r"state", _most(8)),
)

#: Fields that a configuration may leave open though its model cannot do without.
NEEDED = r"^vocab_size$|experts$|experts_per_tok$|^head_dim$|^moe_intermediate_size$"


def _shrunk_field(name: str, value: Any, sizes: Sizes) -> Any:
    shrink = next((shrink for words, shrink in RULES if re.search(words, name)), _keep)
    if not isinstance(value, (list, tuple)):
        return shrink(value, sizes)
    if shrink in (_width, staged) and len(value) > 1:
        shrink = _width if len(set(value)) == 1 else staged
    return type(value)(shrink(entry, sizes) for entry in value)


def _is_size(value: Any) -> bool:
    flat = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) for v in flat) and max(flat) > 1


def shrunk(config: Any, sizes: Sizes, special: Mapping[str, Any], tokens: dict[str, int] | None = None) -> Any:
    """``config`` with small sizes; ``special`` overrides fields, by dictionaries in the inner configurations.

    A field without a default follows from the others, so it is left out - unless what follows is no smaller.
    ``tokens`` are the ids of special tokens, which inner configurations share.
    """
    tokens = {"bos": BEGIN, "pad": PAD, "eos": END} if tokens is None else tokens
    fields = {field.name: _stored(config, field.name) for field in dataclasses.fields(config)}
    given, derived = _small_fields(config, fields, sizes, special, tokens)
    if fields.get("num_key_value_heads") is None or fields.get("kv_lora_rank"):  # latent attention has no groups
        given |= {"num_key_value_heads": given["num_attention_heads"]} if "num_attention_heads" in given else {}
    given |= _layers(config, fields, given | derived, sizes)
    given |= _read_layers(config, fields)
    given |= {k: v(sizes) if callable(v) else v for k, v in special.items() if not _is_config(given.get(k))}
    small = type(config)(**{"num_labels": LABELS} | given)
    same = {k: v for k, v in derived.items() if k not in given and _stored(small, k) == fields[k] != v}
    small = type(config)(**{"num_labels": LABELS} | given | same) if same else small
    if _kinds(small) < _kinds(config) and sizes.layers < DEEPEST:
        return shrunk(config, replace(sizes, layers=sizes.layers + 1), special, tokens)
    if hasattr(small, "use_cache"):
        small.use_cache = False
    if small.is_encoder_decoder and not hasattr(small, "decoder_start_token_id"):
        small.decoder_start_token_id = BEGIN
    return small


def _small_fields(
    config: Any, fields: Mapping[str, Any], sizes: Sizes, special: Mapping[str, Any], tokens: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to build the small configuration with; and the small values of what follows from other fields."""
    usual = type(config)()
    follows = {field.name for field in dataclasses.fields(config) if field.default in (None, "auto")}
    given: dict[str, Any] = {}
    derived: dict[str, Any] = {}
    for name, value in fields.items():
        token = re.fullmatch(r"(\w+)_token_(id|index)", name)
        if name in config.sub_configs and ((value is None and "vision" in name) or _is_foreign(value)):
            part = config.sub_configs_defaults[name]
            value = part.get_config_class(part.model_type)(**part.init_kwargs)
        if _is_config(value):
            given[name] = shrunk(value, sizes, special.get(name, {}), tokens)
        elif token and (isinstance(value, int) or token[1] in (*tokens, "image", "audio")):
            given[name] = tokens.setdefault(token[1], max(tokens.values()) + 1)
        elif name in ("_out_indices", "_out_features"):  # set under the name without the underscore
            given |= {name[1:]: value} if value != _stored(usual, name) else {}
        elif _is_size(value):
            small = _shrunk_field(name, value, sizes)
            (derived if name in follows and _stored(usual, name) == value else given)[name] = small
        elif value is None and re.search(NEEDED, name):
            given[name] = _shrunk_field(name, VOCABULARY, sizes)
        elif value != _stored(usual, name) and name != "dtype":
            given[name] = value
    return given, derived


def _stored(config: Any, name: str) -> Any:
    """A field's value for the configuration as a whole, whatever its layers say."""
    return vars(config).get(config.attribute_map.get(name, name))


def _is_config(value: Any) -> bool:
    return isinstance(value, transformers.PreTrainedConfig)


def _is_foreign(value: Any) -> bool:
    """Whether another library's model is asked for."""
    return _is_config(value) and value.model_type == "timm_backbone"


def _kinds(config: Any) -> set[str]:
    """The kinds of layers that a configuration names."""
    return set(getattr(config, "layer_types", None) or ())


def _count(config: Any) -> tuple[set[str], int]:
    """The names of the fields that hold the number of layers, and that number."""
    names = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
    own = {config.attribute_map.get(name, name) for name in names} & config.__dict__.keys()
    counts = [config.__dict__[name] for name in own] or [getattr(config, "num_hidden_layers", None)]
    return own, next((count for count in counts if isinstance(count, int)), 0)


def _read_layers(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Where several layers are read by their numbers: as many layers, and each is read."""
    own, count = _count(config)
    for name in ("_out_indices", "out_indices", "backbone_out_indices", "vision_feature_layer"):
        numbers = fields.get(name)
        if isinstance(numbers, (list, tuple)) and len(numbers) > 1 and count // 2 < max(numbers) <= count:
            first = max(numbers) - count + 1  # layers count from 0, or from 1 where 0 is what they read
            read = {name.lstrip("_"): [first + i for i in range(len(numbers))]} | dict.fromkeys(own, len(numbers))
            return read | ({"out_features": None} if "out_indices" in read else {})
    return {}


def _layers(config: Any, fields: Mapping[str, Any], small: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Lists with an entry per layer, cut to layers that show each entry; the number of layers with them."""
    own, count = _count(config)
    per_layer = {
        name: small.get(name, value)
        for name, value in fields.items()
        if isinstance(value, (list, tuple)) and len(value) == count > 1 and list(value) != [*range(count)]
    }
    if not per_layer:
        return {}
    first = {values.index(entry) for values in per_layer.values() for entry in values}
    others = [i for i in range(count) if i not in first][: max(0, sizes.layers - len(first))]
    chosen = sorted([*first, *others])
    cut = {name: type(values)(values[i] for i in chosen) for name, values in per_layer.items()}
    return cut | {name: len(chosen) for name in own if config.__dict__[name] == count}
