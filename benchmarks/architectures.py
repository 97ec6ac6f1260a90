"""Every architecture that transformers can build for a task, as a small model with realistic random weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from benchmarks.examples import example
from benchmarks.shrinking import VARIANTS, shrunk
from benchmarks.special import SPECIAL
from fxlrp.testing.weights import realistic

#: The tasks that are counted: transformers' name of the auto class's mapping.
TASKS: dict[str, str] = {
    "sequence classification": "SEQUENCE_CLASSIFICATION",
    "causal LM": "CAUSAL_LM",
    "image classification": "IMAGE_CLASSIFICATION",
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "audio classification": "AUDIO_CLASSIFICATION",
    "image-text to text": "IMAGE_TEXT_TO_TEXT",
    "zero-shot image classification": "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "CTC": "CTC",
    "speech seq2seq": "SPEECH_SEQ_2_SEQ",
    "token classification": "TOKEN_CLASSIFICATION",
    "question answering": "QUESTION_ANSWERING",
    "masked LM": "MASKED_LM",
    "object detection": "OBJECT_DETECTION",
    "semantic segmentation": "SEMANTIC_SEGMENTATION",
    "universal segmentation": "UNIVERSAL_SEGMENTATION",
    "depth": "DEPTH_ESTIMATION",
    "time series": "TIME_SERIES_PREDICTION",
    "time series classification": "TIME_SERIES_CLASSIFICATION",
    "time series regression": "TIME_SERIES_REGRESSION",
}
CORE = tuple(TASKS)[:5]


def listed(task: str) -> dict[str, Any]:
    """The names of transformers' classes for a task, by model type."""
    names: dict[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{TASKS[task]}_MAPPING_NAMES")
    return names


def _for_class(config: Any, kind: type) -> Any:
    """The part of a composite configuration that a model of class ``kind`` is built from."""
    wanted = kind.config_class  # type: ignore[attr-defined]
    if isinstance(config, wanted):
        return config
    inner = (getattr(config, name) for name in config.sub_configs)
    return next((part for part in inner if isinstance(part, wanted)), config)


@dataclass(frozen=True)
class Architecture:
    """A task and a model type."""

    task: str
    model_type: str

    def __str__(self) -> str:
        return f"{self.model_type} ({self.task})"

    @property
    def model_class(self) -> Any:
        """The class that transformers builds for the task."""
        names = listed(self.task)[self.model_type]
        return getattr(transformers, names if isinstance(names, str) else names[0])

    def config(self, variant: int = 0) -> Any:
        """The shrunken configuration; each variant has other sizes."""
        special = SPECIAL.get(self.model_type, {}) | SPECIAL.get(str(self), {})
        return shrunk(transformers.CONFIG_MAPPING[self.model_type](), VARIANTS[variant], special)

    def build(self, seed: int = 0, variant: int = 0, dtype: torch.dtype | None = None) -> nn.Module:
        """The model in eval mode, with weights at a trained model's scale; float64 where it runs so, else float32."""
        if dtype is None:
            model = self.build(seed, variant, torch.float64)
            if _runs(model, variant):
                return model
            single = self.build(seed, variant, torch.float32)
            return single if _runs(single, variant) else model
        config = _for_class(self.config(variant), self.model_class)
        if self.task == "causal LM" and not config.is_encoder_decoder and hasattr(config, "is_decoder"):
            config.is_decoder = True
        if self.task == "question answering":
            config.num_labels = 2  # where the answer starts and where it ends
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.model_class._from_config(config, dtype=dtype, experts_implementation="batched_mm")
        return realistic(model.to(dtype).eval(), seed)


def _runs(model: nn.Module, variant: int) -> bool:
    try:
        example(model, variant=variant)
    except Exception:
        return False
    return True


def architectures(tasks: Iterable[str] = tuple(TASKS)) -> list[Architecture]:
    """All that transformers lists for the tasks, in its order."""
    return [Architecture(task, name) for task in tasks for name in listed(task)]
