"""What the rules of :mod:`benchmarks.shrinking` get wrong, by model type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.shrinking import FIRST_WORD, LABELS, VOCABULARY, staged

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 8, "budget": 4, "compress_ratio": 2}
_QWEN4 = {f"indexer_{name}": value for name, value in _INDEXER.items()}

_TURNS = _ROPE | {"mrope_section": [2, 1, 1]}  # of half a head: turned by time, by height, by width
_HALF = _ROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}


_EFFICIENT = {
    "width_coefficient": 0.25,  # of its 32 and 1280 channels at the ends, which are not fields
    "depth_coefficient": 0.3,
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "hidden_dim": 320,
}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_ENCODER = {"downsampling_ratios": [2, 4], "depths": [1, 1, 1], "num_filters": 8}
_SLIDING = {f"swa_{name}": size for name, size in _LATENT.items()}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_TILES = {"image_grid_pinpoints": lambda s: [[s.image, s.image]]}
_MERGED = {"out_hidden_size": lambda s: 4 * s.width}  # of four patches
_CODEC = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_res_blocks": 1}
_STARTS = {"vision_start_token_id": 60, "audio_start_token_id": 61}


_LINES = {
    f"{name}_{length}ratio": [shape, [1, 1], [side // 2 for side in shape]]
    for length, size in {"long": 7, "mid": 5, "short": 3}.items()
    for name, shape in {
        "vertical_long_to_small_conv": [size, 1],
        "horizontal_small_to_long_conv": [1, size],
        "symmetric_conv_long": [size, size],
    }.items()
}
_BLOCKS = [[[3, 16, 16, 1, True]], [[3, 16, 16, 2, False]], [[3, 16, 32, 2, False]], [[3, 32, 64, 2, True]]]
_OCR = {
    "intraclass_block_config": {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]} | _LINES,
    "scale_factor_list": [1, 2, 4, 8],
    "kernel_list": [3, 2, 2],
}


def _codes(name: str, code: Callable[[int], str]) -> dict[str, int]:
    """A vocabulary of words for what stands in an image."""
    words = {name.format(code(i)): FIRST_WORD + i for i in range(VOCABULARY - FIRST_WORD)}
    return {"<image>": FIRST_WORD - 2, "<|extra_200|>": FIRST_WORD - 1} | words


def _text(**fields: Any) -> dict[str, Any]:
    return {"text_config": fields}


#: Fields of the configuration: a value, a function of the sizes, or a dictionary for an inner configuration.
SPECIAL: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _EFFICIENT, "projection_dim": 80},  # a quarter of its last channels
    "aria": {"projector_patch_to_query_dict": {16: 4, 64: 4}},
    "beit (semantic segmentation)": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "bros": {"hidden_size": lambda s: 2 * s.width},  # of which a quarter is shared by eight coordinates
    "chameleon": {
        "vq_config": _CODEC,
        "vocabulary_map": _codes("IMGIMG{}Z", lambda i: "".join("ABCDEFGHIJ"[int(d)] for d in str(i))),
    },
    "chmv2": {"backbone_config": {"return_class_token": True}},
    "blip-2 (zero-shot image classification)": {"qformer_config": {"use_qformer_text_input": True}},
    "cohere_compass": _text(rope_parameters={"full_attention": _TURNS}),
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "cosmos3_edge": _text(rope_parameters=_TURNS),
    "cvt": {"depth": [1, 2, 3]},  # the entry of stage i is read at position i of a list as long as its depth
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [1]}},
    "deepseek_ocr2": _text(mlp_layer_types=["dense", "sparse"]),
    "depth_pro": {
        "patch_size": lambda s: s.image,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_ratios": [0.5, 1],
        "scaled_images_overlap_ratios": [0.0, 0.25],
        "scaled_images_feature_dims": [32, 16],
    },
    "detr (universal segmentation)": {
        "backbone_config": {"out_features": _STAGES},
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
    },
    "donut-swin": {"depths": [1, 1], "num_heads": [2, 4]},  # deeper stages are smaller than a window
    "dots3_note": _text(**_SLIDING),
    "dots3_note_text": _SLIDING,
    "efficientnet": _EFFICIENT,
    "emu3": {
        "vq_config": _CODEC | {"channel_multiplier": [1, 1, 1, 1], "hidden_size": 32},
        "vocabulary_map": _codes("<|visual token {}|>", "{:06d}".format),
    },
    "ernie4_5_vl_moe": _text(rope_parameters=_ROPE | {"mrope_section": [1, 1, 2]}),
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": lambda s: s.width // 4}},
    "funnel": {"block_sizes": [1, 1]},
    "gemma4_unified": {"vision_config": {"output_proj_dims": lambda s: s.width}},
    "glm46v": _text(rope_parameters=_TURNS),
    "glm4v": _text(rope_parameters=_TURNS),
    "glm4v_moe": _text(rope_parameters=_HALF),
    "glm5_next": _text(index_kpool=2),
    "glm_ocr": _text(rope_parameters=_TURNS),
    "glmga": _text(rope_parameters=_TURNS),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[1, 0]],
        "spatial_target_layers": [1],
    }
    | _TILES,
    "granite_speech": {"window_size": 15},
    "granite_speech_plus": {"window_size": 15},
    "hiera": {"image_size": [64, 64]},
    "hunyuan_vl": _text(rope_parameters=_TURNS),
    "instructblipvideo": {"video_token_index": FIRST_WORD - 1},
    "janus": {"vq_config": _CODEC},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": lambda s: s.width}},
    "layoutlmv3": {"coordinate_size": lambda s: 3 * s.width // 16, "shape_size": lambda s: s.width // 8},
    "levit": {"image_size": 64, "patch_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_vl": _text(layer_types=["conv", "full_attention"], num_hidden_layers=2),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lilt": {"hidden_size": lambda s: 3 * s.width // 2},  # six coordinates share it
    "llama4": {"vision_config": {"intermediate_size": lambda s: 4 * s.width}},
    "llava_next": _TILES,
    "llava_next_video": _TILES,
    "llava_onevision": _TILES,
    "lw_detr": {"projector_scale_factors": [1.0]},
    "mamba2": {"head_dim": lambda s: 2 * s.head},
    "markuplm": {"max_xpath_tag_unit_embeddings": 256, "max_xpath_subs_unit_embeddings": 1024, "max_depth": 3},
    "mask2former": {"feature_size": 32, "mask_feature_size": 32},
    "mllama": {
        "text_config": {"num_hidden_layers": 2, "cross_attention_layers": [1]},
        "vision_config": {
            "intermediate_layers_indices": [0, 1],
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "vision_output_dim": lambda s: 3 * s.width,
        },
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25, "finegrained_output": False},
    "mobilevitv2": {
        "image_size": 64,
        "width_multiplier": 0.25,
        "n_attn_blocks": [1, 1, 1],
        "base_attn_unit_dims": [32, 48, 64],
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_glimmer": _MERGED,
    "muse_spark": _MERGED,
    "neomme": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _HALF)},
    "paddleocr_vl": _text(rope_parameters=_TURNS),
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "max_position_embeddings": 7,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "pp_doclayout_v2": {
        "class_thresholds": [0.1] * LABELS,
        "class_order": [*range(LABELS)],
        "reading_order_config": {"max_2d_position_embeddings": 1024},
    },
    "pp_doclayout_v3": {"x4_feat_dim": lambda s: staged(128, s)},
    "pp_ocrv5_mobile_det": {"backbone_config": {"scale": 0.25}},
    "pp_ocrv5_server_det": _OCR,
    "pp_ocrv6_medium_det": _OCR | {"backbone_config": {"block_configs": _BLOCKS, "out_features": _STAGES}},
    "pp_ocrv6_small_det": {
        "backbone_config": {"block_configs": _BLOCKS, "out_features": _STAGES},
        "layer_list_out_channels": [16, 16, 32, 64],
        "neck_out_channels": 16,
    },
    "pp_lcnet": {"stem_channels": 16},
    "qwen2_5_omni_thinker": _text(rope_parameters=_TURNS) | _STARTS,
    "qwen2_5_vl": _text(rope_parameters=_TURNS),
    "qwen2_vl": _text(rope_parameters=_TURNS),
    "qwen3_omni_moe_thinker": _STARTS,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "axial_pos_embds_dim": lambda s: [s.width // 4, 3 * s.width // 4],
        "axial_pos_shape": [8, 12],
        "hash_seed": 0,
    },
    "sapiens2": {"head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [16]}},
    "shieldgemma2": {"yes_token_index": 70, "no_token_index": 71},
    "step3p7": _text(sliding_window=8),
    "swin": {"depths": [1, 1], "num_heads": [2, 4]},
    "upernet": {"backbone_config": {"out_features": _STAGES}},
    "vibevoice_asr": {
        "acoustic_tokenizer_chunk_size": 8,
        "acoustic_tokenizer_encoder_config": _ENCODER,
        "semantic_tokenizer_encoder_config": _ENCODER,
    },
    "vipllava": {"vision_feature_layers": [-2, -1, 1]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
}
