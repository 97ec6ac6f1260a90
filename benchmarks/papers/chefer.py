"""Chefer et al. 2021: how well relevance maps segment, and how they order pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fxlrp
from benchmarks.papers.data import BATCH
from benchmarks.papers.experiment import Column, Experiment, Method
from fxlrp import shipped
from fxlrp.evaluate import Segmentation, chefer2021_negative, chefer2021_positive

SAMPLES = 500
THEIRS = "ViT-B/16 on ImageNet; segmentations of ImageNet images (Guillaumin et al. 2014)"
OURS = "the shipped vision transformer (4 blocks, hidden 64) on digits among clutter, whose masks are known"
SOURCE, URL = "Chefer et al. 2021, CVPR", "https://arxiv.org/abs/2012.09838"


def build(count: int | None) -> tuple[Any, Sequence[Any]]:
    """The model, and canvases it has not seen with labels and masks."""
    digits = shipped.digits(count or SAMPLES, seed=0, split="test")
    parts = zip(*(each.split(BATCH) for each in (digits.images, digits.labels, digits.masks)), strict=True)
    return shipped.digits_vit(), list(parts)


def columns() -> tuple[Column, ...]:
    """Segmentation and both perturbations."""
    segmentation = Segmentation()
    return (
        Column("pixel accuracy", segmentation, "pixel accuracy"),
        Column("mAP", segmentation, "mAP"),
        Column("mIoU", segmentation, "mIoU"),
        Column("positive", chefer2021_positive(), "auac", larger=False),
        Column("negative", chefer2021_negative(), "auac"),
    )


def numbers(accuracy: str, ap: str, iou: str, positive: str, negative: str) -> dict[str, str]:
    """The paper's percentages by column."""
    return dict(
        zip(
            ("pixel accuracy", "mAP", "mIoU", "positive", "negative"),
            (accuracy, ap, iou, positive, negative),
            strict=True,
        )
    )


def methods_compared(count: int | None) -> Experiment:
    """Tables 1 and 2."""
    rollout = fxlrp.ruleset("rollout").override(readout={"tokens": "input"})  # patches, without the class token
    return Experiment(
        key="chefer",
        title="Transformer attribution: segmentation and perturbation",
        source=f"{SOURCE}, tables 1 and 2 (in percent; predicted class)",
        url=URL,
        theirs=THEIRS,
        ours=OURS,
        methods=(
            Method("LRP", "full-lrp", numbers("51.09", "55.68", "32.89", "41.94", "43.49")),
            Method("GradCAM", "attn-gradcam", numbers("64.44", "71.60", "40.82", "34.06", "41.52")),
            Method("raw attention", "raw-attention", numbers("67.84", "80.24", "46.37", "23.99", "45.55")),
            Method("rollout", rollout, numbers("73.54", "84.76", "55.42", "20.05", "53.10")),
            Method("partial LRP", "partial-lrp", numbers("76.31", "84.67", "57.94", "19.64", "50.49")),
            Method("transformer attribution", "chefer2021-vit", numbers("79.70", "86.03", "61.95", "17.03", "54.16")),
            Method("AttnLRP (not in the paper)", "attnlrp-vit"),
        ),
        columns=columns(),
        steps=(
            ("LRP", "GradCAM"),
            ("GradCAM", "raw attention"),
            ("raw attention", "rollout"),
            ("rollout", "partial LRP"),
            ("partial LRP", "transformer attribution"),
            *((other, "transformer attribution") for other in ("LRP", "GradCAM", "raw attention", "rollout")),
        ),
        ordered=("pixel accuracy", "mIoU"),
        build=lambda: build(count),
        remarks=(
            "Positive and negative are areas under the accuracy from 0 to 90 % of pixels replaced by black, from 0 to "
            "0.9. Relevance of AttnLRP is signed, and the threshold at the mean is harsh on it.",
            "What does not reproduce: LRP is not the last. It alone of these is by pixel, and multiplies with the "
            "value of the pixel at the first layer: digits are the brightest part of a dark canvas, which is an "
            "advantage that it does not have on photographs. Partial LRP, a single layer's relevance of "
            "attention, falls behind rollout in this model of four blocks.",
        ),
    )


def ablation(count: int | None) -> Experiment:
    """Table 4: what the gradient and each block contribute."""
    ours = fxlrp.ruleset("chefer2021-vit")
    blocks = 4
    return Experiment(
        key="chefer-ablation",
        title="Transformer attribution: ablation",
        source=f"{SOURCE}, the table of ablations",
        url=URL,
        theirs=THEIRS,
        ours=OURS,
        methods=(
            Method("last block only", ours.override(readout={"start_layer": blocks - 1})),
            Method("first block only", ours.override(readout={"end_layer": 1})),
            Method("without gradient", ours.override(readout={"matrix": "relevance"})),
            Method("all", ours),
        ),
        columns=columns(),
        steps=(("last block only", "all"), ("first block only", "all"), ("without gradient", "all")),
        ordered=("pixel accuracy", "mIoU"),
        build=lambda: build(count),
        remarks=(
            "The paper's numbers of this table could not be looked up when this page was made.",
            "What does not reproduce: without the gradient the maps segment a little better, and order pixels as well. "
            "The gradient tells classes apart, as photographs of several objects need it; a canvas holds one digit "
            "among fragments of no class.",
        ),
    )
