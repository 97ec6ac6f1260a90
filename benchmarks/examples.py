"""Random inputs for a model of any task, chosen by the arguments that its forward takes."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shrinking import BEGIN, END, FIRST_WORD, PAD, VARIANTS, VOCABULARY

BATCH, LENGTH, PADDING = 2, 7, 2
FRAMES = 8 * LENGTH  # of a spectrum: a model that halves it three times and adds it to the text finds equal lengths
SAMPLES = 3200  # of a wave
BINS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim", "input_feat_size")
MOST_PLACEHOLDERS = 80


@dataclass
class Draw:
    """What the inputs of one attempt are drawn from."""

    model: nn.Module
    seed: int
    variant: int
    padded: bool = True
    layout: int = 0
    placeholders: dict[str, int] = field(default_factory=dict)  # tokens per sample that stand for an image or a sound
    stepwise: bool = False  # whether their number is found one by one
    tries: int = 0

    def __post_init__(self) -> None:
        self.rng = torch.Generator().manual_seed(self.seed)
        self.takes = inspect.signature(self.model.forward).parameters.keys()
        self.dtype = next(self.model.parameters()).dtype
        self.given: dict[str, Any] = {}  # so far

    def floats(self, *shape: int) -> Tensor:
        """Normal noise in the model's dtype."""
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from ``low`` to below ``high``."""
        return torch.randint(low, high, shape, generator=self.rng)

    def configs(self) -> list[Any]:
        """The model's configuration and those in it, outer ones first."""
        levels: list[Any] = [self.model.config]
        for config in levels:
            levels += [getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None]
        return levels

    def setting(self, *names: str, default: Any = None, of: str = "") -> Any:
        """The first of the fields ``names`` that a configuration sets whose kind contains ``of``."""
        found = (
            getattr(config, name)
            for config in self.configs()
            for name in names
            if of in type(config).__name__ and getattr(config, name, None) is not None
        )
        return next(found, default)

    def mark(self, kind: str) -> Any:
        """The token that stands for an image or a sound."""
        places = "image_embeds_position_mask" in self.takes  # which are told, so that any token serves
        return self.setting(f"{kind}_token_id", f"{kind}_token_index", default=FIRST_WORD if places else None)


def _text(draw: Draw) -> dict[str, Tensor]:
    """Words, then an end; the second sample is shorter by padding on its right."""
    marks = [draw.mark(kind) for kind, count in draw.placeholders.items() for _ in range(count)]
    flat = draw.model.main_input_name == "input_ids"  # rows of ids for each codebook, if the model has several
    rows = BATCH * getattr(draw.model, "num_codebooks", 1) if flat else BATCH
    ids = draw.integers(FIRST_WORD, VOCABULARY, rows, LENGTH + len(marks))
    ids[:, 1 : 1 + len(marks)] = torch.tensor(marks)
    separator = draw.setting("sep_token_id") if hasattr(draw.model, "qa_outputs") else None
    if separator is not None:  # the question ends, the text begins and ends
        ids[:, [2, 3]] = separator
    mask = torch.ones(BATCH, ids.shape[1], dtype=torch.long)
    if draw.padded and "attention_mask" in draw.takes and rows == BATCH:
        mask[1, -PADDING:] = 0
    if rows == BATCH:
        ids = ids.where(mask.bool(), torch.tensor(PAD))
        ids[torch.arange(BATCH), mask.sum(1) - 1] = END if separator is None else separator
    given = {"input_ids": ids}
    if "attention_mask" in draw.takes:
        given["attention_mask"] = mask
    if "bbox" in draw.takes:
        given["bbox"] = draw.integers(0, 90, BATCH, ids.shape[1], 2, 2).sort(2).values.flatten(2)
    if "qformer_input_ids" in draw.takes:
        given["qformer_input_ids"] = ids.clamp(min=FIRST_WORD)
    if "mm_token_type_ids" in draw.takes:
        given["mm_token_type_ids"] = (ids == draw.mark("image")).long()
    return given


def _decoder(draw: Draw) -> dict[str, Tensor]:
    """A classifier or a reader derives what its decoder reads; a model that writes is told."""
    if not draw.model.can_generate():  # type: ignore[operator]
        return {}
    channels = draw.setting("num_channels", of="Decoder")  # of codes for one step of a sound
    ids = draw.integers(FIRST_WORD, VOCABULARY, BATCH, LENGTH - 2, *([channels] if channels else []))
    ids[:, 0] = BEGIN
    return {"decoder_input_ids": ids}


def _image(draw: Draw) -> dict[str, Tensor]:
    """An image: of pixels, or of patches whose places other arguments tell."""
    channels = draw.setting("num_channels", "in_channels", "in_chans", default=3, of="Vision")
    channels = channels if isinstance(channels, int) else 3
    patch = draw.setting("model_patch_size", "patch_size", default=8, of="Vision")
    patch = patch if isinstance(patch, int) else patch[0]
    side = 2 * draw.setting("pooling_kernel_size", "spatial_merge_size", default=2, of="Vision")
    most = draw.setting("max_num_tiles", default=1)
    values = channels * patch**2
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)
    others = {
        "image_grid_thw": torch.tensor([[1, side, side]] * BATCH),
        "image_grid_hw": torch.tensor([[side, side]] * BATCH),
        "image_merge_sizes": torch.tensor([draw.setting("spatial_merge_size", default=1)] * BATCH),
        "spatial_shapes": torch.tensor([[side, side]] * BATCH),
        "target_sizes": torch.tensor([[side, side]] * BATCH),
        "image_position_ids": places.expand(BATCH, -1, -1),
        "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
        "aspect_ratio_mask": (torch.arange(most) == 0).long().expand(BATCH, 1, -1),
    }
    given = {name: value for name, value in others.items() if name in draw.takes}
    if "image_grid_thw" in given:
        flat = values * draw.setting("temporal_patch_size", "patch_temporal", default=1, of="Vision")
        shapes = [(flat,), (channels, patch, patch), (channels, patch, patch)]
        pixels = draw.floats(BATCH * side**2, *shapes[draw.layout % 3])
        return given | {"pixel_values": pixels[None] if draw.layout == 2 else pixels}
    if "target_sizes" in given:
        return given | {"pixel_values": draw.floats(1, channels, patch, BATCH * side**2 * patch)}
    if "image_grid_hw" in given or hasattr(draw.model.config, "patch_dim"):
        return given | {"pixel_values": draw.floats(BATCH * side**2, values)}
    if draw.takes & {"spatial_shapes", "image_position_ids", "image_patches"}:
        mask = torch.ones(BATCH, side**2, dtype=torch.long)
        given |= {"pixel_attention_mask": mask} if "pixel_attention_mask" in draw.takes else {}
        return given | {"pixel_values": draw.floats(BATCH, side**2, values)}
    size = draw.setting("image_size", "img_size", default=VARIANTS[draw.variant].image)
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    smallest = min(draw.setting("scaled_images_ratios", default=[1]))  # of the image, as large as one that it reads
    height, width = int(height / smallest), int(width / smallest)
    several = bool(draw.takes & {"pixel_attention_mask", "image_attention_mask"})  # images for one sample
    tiles: tuple[int, ...] = (1,) if several != (draw.layout > 1) else ()
    if "aspect_ratio_ids" in given:
        tiles = (1, most)
    if "video" in draw.placeholders:
        tiles = (2,)
    if draw.takes & {"tile_fine_mask", "actions"}:
        given["pixel_attention_mask"] = torch.ones(BATCH, 1, dtype=torch.bool)
    if "image_sizes" in draw.takes and draw.layout % 2 == 0:
        given["image_sizes"] = torch.tensor([[height, width]] * BATCH)
        tiles = (2,) if draw.setting("image_grid_pinpoints") else ()  # the image as a whole, then its one tile
    return given | {"pixel_values": draw.floats(BATCH, *tiles, channels, height, width)}


def _video(draw: Draw) -> dict[str, Tensor]:
    """A video, for a model that takes no image."""
    if "pixel_values" in draw.takes:
        return {}
    size = draw.setting("image_size", default=VARIANTS[draw.variant].image)
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    return {"pixel_values_videos": draw.floats(BATCH, draw.setting("num_frames", default=2), 3, height, width)}


def _series(draw: Draw) -> dict[str, Tensor]:
    """A time series of as many channels as the model has; without channels where it takes one series at a time."""
    length, channels = draw.setting("context_length", default=32), draw.setting("num_input_channels")
    return {"past_values": draw.floats(BATCH, length, *([channels] if channels else []))}


def _wave(draw: Draw) -> dict[str, Any]:
    bins, length = draw.setting("num_mel_bins"), draw.setting("max_length")
    samples = draw.setting("acoustic_tokenizer_chunk_size", default=SAMPLES)
    shape = (length, bins) if bins and length else ((samples,), (1, samples))[draw.layout % 2]
    given: dict[str, Any] = {"input_values": draw.floats(BATCH, *shape)}
    return given | ({"sample": False} if "sample" in draw.takes else {})  # of a noisy code its mean


def _spectrum(draw: Draw) -> dict[str, Tensor]:
    bins = draw.setting(*BINS, default=(16, draw.setting("d_model", default=16))[draw.layout // 2])
    bins *= 4 if draw.setting("subsample_layers") else 1  # four frames at once
    window = draw.setting("n_window")
    positions = draw.setting("max_source_positions")
    frames = 2 * positions if positions else 2 * window if window else FRAMES
    given = {"input_features": draw.floats(BATCH, *((bins, frames), (frames, bins))[draw.layout % 2])}
    if "chunk_sample_lengths" in draw.takes:
        given["chunk_sample_lengths"] = torch.full((BATCH,), SAMPLES)
    for name in {"input_features_mask", "feature_attention_mask"} & draw.takes:
        if draw.layout < 2:  # of frames; others mask what becomes of them
            given[name] = torch.ones(BATCH, frames, dtype=torch.long)
    return given


def _detail(draw: Draw) -> dict[str, Tensor]:
    """The image once more, of a higher resolution."""
    size = draw.setting("image_size", of="Sam", default=VARIANTS[draw.variant].image)
    return {"high_res_pixel_values": draw.floats(BATCH, 3, size, size)}


def _patches(draw: Draw) -> dict[str, Tensor]:
    """Patches of an image, each after its row and its column."""
    places = torch.cartesian_prod(torch.arange(1, 3), torch.arange(1, 3)).expand(BATCH, -1, -1)
    values = draw.floats(BATCH, places.shape[1], draw.setting("patch_embed_hidden_size"))
    given = {"flattened_patches": torch.cat([places.to(draw.dtype), values], 2)}
    mask = torch.ones(BATCH, places.shape[1], dtype=torch.long)
    return given if "input_ids" in draw.takes else given | {"attention_mask": mask}


def _regions(draw: Draw) -> dict[str, Tensor]:
    """What a detector saw in an image, and where."""
    corners = draw.floats(BATCH, 4, 2, 2).sigmoid().sort(2).values.flatten(2)
    return {"visual_feats": draw.floats(BATCH, 4, draw.setting("visual_feat_dim")), "visual_pos": corners}


def _task(draw: Draw) -> dict[str, Tensor]:
    """The words that say which task an image is for."""
    return {"task_inputs": draw.integers(FIRST_WORD, VOCABULARY, BATCH, draw.setting("task_seq_len"))}


def _motion(draw: Draw) -> dict[str, Tensor]:
    """The state of a robot; the noise from which its motion comes, and how far it came."""
    return {
        "state": draw.floats(BATCH, draw.setting("max_state_dim")),
        "noise": draw.floats(BATCH, draw.setting("chunk_size"), draw.setting("max_action_dim")),
        "timestep": draw.floats(BATCH).sigmoid(),
    }


def _read_image(draw: Draw) -> dict[str, Tensor]:
    """That every word reads the image."""
    if "pixel_values" not in draw.given:
        return {}
    length = draw.given["input_ids"].shape[1]
    if "aspect_ratio_mask" in draw.given:
        return {"cross_attention_mask": draw.given["aspect_ratio_mask"][:, None].repeat(1, length, 1, 1)}
    return {"image_attention_mask": torch.ones(BATCH, length, 1, dtype=torch.long)}


def _image_places(draw: Draw) -> dict[str, Tensor]:
    """Which tokens stand for the image."""
    mask = torch.zeros(draw.given["input_ids"].shape, dtype=torch.long)
    mask[:, 1 : 1 + draw.placeholders["image"]] = 1
    return {"image_embeds_position_mask": mask}


#: Argument of forward -> what is given when the model takes it, and the token that stands for it in the text.
MAKERS: dict[str, tuple[Callable[[Draw], dict[str, Any]], str]] = {
    "pixel_values": (_image, "image"),
    "input_values": (_wave, "audio"),
    "input_features": (_spectrum, "audio"),
    "high_res_pixel_values": (_detail, ""),
    "flattened_patches": (_patches, "image"),
    "visual_feats": (_regions, ""),
    "task_inputs": (_task, ""),
    "actions": (_motion, ""),
    "pixel_values_videos": (_video, ""),
    "past_values": (_series, ""),
    "decoder_input_ids": (_decoder, ""),
    "input_ids": (_text, ""),
    "aspect_ratio_mask": (_read_image, ""),
    "image_attention_mask": (_read_image, ""),
    "image_embeds_position_mask": (_image_places, ""),
}


def _inputs(draw: Draw) -> dict[str, Any]:
    for name, (make, kind) in MAKERS.items():
        if name not in draw.takes or getattr(draw.model.config, f"{kind}_config", True) is None:
            continue
        if name == "input_features" and "input_values" in draw.given:
            continue
        if name == "input_ids" and "decoder_input_ids" in draw.given and "input_features" in draw.given:
            continue
        if kind == "image" and draw.mark(kind) is None and "pixel_values_videos" not in draw.takes:
            kind = "video"  # which it takes as images
        if kind and "input_ids" in draw.takes and draw.mark(kind) is not None:
            draw.placeholders.setdefault(kind, draw.setting("num_query_tokens", "latent_query_num", default=1))
        draw.given |= make(draw)
    return draw.given


def _finite(outputs: Any) -> bool:
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return all(v.isfinite().all() for v in values if isinstance(v, Tensor) and v.is_floating_point())


#: Complaints with the numbers of placeholders and of features.
COMPLAINTS = (
    r"(?P<kind>\w+) features and [\w ]+ do not match\W+tokens: (?P<tokens>\d+)\W+features:? (?P<features>\d+)",
    r"(?P<kind>)Got (?P<features>\d+) [\w ]+ for (?P<tokens>\d+) (image )?placeholder tokens",
)


def _more(draw: Draw, error: Exception) -> bool:
    """Follow a complaint that placeholders are not as many as features: as many as it asks for, else one more."""
    found = next(filter(None, (re.search(words, str(error)) for words in COMPLAINTS)), None)
    kind = found["kind"].lower() if found else ""
    if kind in ("", "multimodal"):
        kind = "image" if "image" in draw.placeholders else next(iter(draw.placeholders), "")
    if not found or kind not in draw.placeholders:
        return False
    tokens, features = int(found["tokens"]), int(found["features"])
    if draw.stepwise:
        draw.placeholders[kind] += 1
    elif tokens == features:  # which it does not count in the same unit
        draw.stepwise, draw.placeholders[kind] = True, 2
    else:
        draw.placeholders[kind] = math.ceil(features / BATCH)
    draw.tries += 1
    return draw.tries < MOST_PLACEHOLDERS


def _attempts(model: nn.Module, seed: int, variant: int) -> Iterator[Draw]:
    takes = inspect.signature(model.forward).parameters.keys()
    for padded, layout in itertools.product(
        (True, False), range(4 if takes & {"input_features", "input_values", "pixel_values"} else 1)
    ):
        yield Draw(model, seed, variant, padded, layout)


@torch.no_grad()
def example(model: nn.Module, seed: int = 0, variant: int = 0) -> dict[str, Any]:
    """Keyword arguments of ``model``'s forward: two samples, with finite outputs.

    The model is run to see: without padding where it does not run with it, with as many placeholders as it asks for.
    """
    failures: list[Exception] = []
    for draw in _attempts(model, seed, variant):
        while True:
            draw.__post_init__()
            inputs = _inputs(draw)
            try:
                if _finite(model(**inputs)):
                    return inputs
                failures.append(ValueError("outputs are not finite"))
            except Exception as error:
                if _more(draw, error):
                    continue
                failures.append(error)
            break
    for other in {str(failure)[:300] for failure in failures[1:]} - {str(failures[0])[:300]}:
        failures[0].add_note(f"other attempt: {other}")
    raise failures[0]
