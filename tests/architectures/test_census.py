"""A fixed sample of the census: architectures chosen so that together they use all operators that it met.

The whole is ``make census``; what it found last is in ``docs/coverage.md``.
"""

from __future__ import annotations

import pytest

from benchmarks.architectures import Architecture
from benchmarks.coverage import counts, page
from benchmarks.examine import STEPS, Record, examine

SAMPLE: dict[str, tuple[str, ...]] = {
    "sequence classification": (
        "big_bird",
        "canine",
        "convbert",
        "fnet",
        "funnel",
        "longformer",
        "squeezebert",
        "tapas",
        "yoso",
    ),
    "causal LM": (
        "apertus",
        "dbrx",
        "deepseek_v3",
        "diffllama",
        "falcon_mamba",
        "gpt_oss",
        "jetmoe",
        "lfm2",
        "llama4_text",
        "mamba2",
        "recurrent_gemma",
        "rwkv",
        "xlnet",
    ),
    "image classification": (
        "cvt",
        "efficientnet",
        "focalnet",
        "levit",
        "mobilevit",
        "poolformer",
        "segformer",
        "swinv2",
    ),
    "seq2seq": ("fsmt", "switch_transformers"),
    "audio classification": ("wav2vec2", "whisper"),
    "image-text to text": ("llava", "qwen2_vl"),
    "zero-shot image classification": ("clip", "siglip"),
    "object detection": ("yolos",),
    "depth": ("glpn",),
    "time series regression": ("patchtst",),
}


#: These take longest; what is rare in them has tests of its own.
SLOW = frozenset(
    (
        *("big_bird", "canine", "convbert", "deepseek_v3", "fsmt", "funnel", "glpn", "llama4_text", "longformer"),
        *("mamba2", "mobilevit", "qwen2_vl", "recurrent_gemma", "rwkv", "wav2vec2"),
        # Here for their operators, which test_kinds has one by one, or tested as a whole beside this.
        *("cvt", "tapas", "switch_transformers", "yoso", "llava", "siglip", "dbrx", "xlnet", "patchtst"),
    )
)


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize(
    ("task", "model_type"),
    [
        pytest.param(task, name, marks=pytest.mark.slow if name in SLOW else ())
        for task, names in SAMPLE.items()
        for name in names
    ],
)
def test_a_sample_of_all_architectures_passes(task: str, model_type: str) -> None:
    record = Record(task, model_type)
    examine(record, lambda _: None)
    assert record.passes, f"{record.reached}: {record.reason}"


def test_a_step_that_fails_is_recorded_with_its_reason() -> None:
    record = Record("causal LM", "no_such_model")
    examine(record, lambda _: None)
    assert not record.runs
    assert "no_such_model" in record.reason


def test_every_architecture_of_the_sample_is_listed_for_its_task() -> None:
    for task, names in SAMPLE.items():
        assert all(Architecture(task, name).model_class for name in names)


def test_the_page_counts_each_step_and_gives_reasons() -> None:
    done = Record("causal LM", "a", reached=STEPS[-1], export_s=2.0, convert_s=1.0, gaps={"attnlrp": 1e-12})
    open_ = Record("causal LM", "b", reached="values", reason="ledger open: attnlrp 1.0e-02")
    broken = Record("causal LM", "c", reason="ImportError: no timm")
    assert counts([done, open_, broken]) == [3, 2, 2, 2, 2, 2, 1]
    text = page([done, open_, broken])
    assert "50.0 %" in text
    assert "ledger open" in text
    assert "no timm" in text
