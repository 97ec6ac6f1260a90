"""Where relevance lies: against masks of objects in images, and against rationales in texts.

In: batches with a ``truth``. Out: pixel accuracy, mean intersection over union and mean average precision of relevance
maps as segmentations; F1 of the most relevant tokens as rationales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from fxlrp.errors import InputError, MissingExtraError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Of, explain_class
from fxlrp.evaluate.figures import lines
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.explain.model import ConvertedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a map of signed relevance is made into before it is normalised.
Sign = Literal["as-is", "absolute", "positive"]
SIGNS = {"as-is": lambda relevance: relevance, "absolute": torch.abs, "positive": torch.relu}


@protocol
class Segmentation(Protocol):
    """Relevance maps as segmentations of what an image shows.

    truth: [samples, height, width], 1 on the object, 0 off it, -1 where nobody knows. A map is enlarged to the size of
    the image, made ``as-is``, ``absolute`` or ``positive``, and normalised to [0, 1] by its smallest and largest value;
    the object is where m > mean(m). Pixel accuracy is the share of known pixels that are right, and mIoU the mean, over
    the object and what is around it, of intersection over union, both with sums over the whole data set. mAP is the
    mean over images of the average precision of the scores (1 - m, m) of all pixels against their one-hot truth.

    Needs scikit-learn (extra 'evaluate'). Source: Chefer et al. 2021 (arXiv 2012.09838), section 4, on the data of
    Guillaumin et al. 2014.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Segmentation",
        "Relevance above its mean is taken for the object, and compared with where the object is.",
        {
            "pixel accuracy": "share of pixels that are right",
            "mIoU": "intersection over union of object and surroundings, mean of both",
            "mAP": "average precision of pixels ordered by relevance",
        },
    )

    of: Of = "predicted"
    sign: Sign = "as-is"

    def start(self, lrp: ConvertedModel) -> Measure:
        """Sums over pixels: ``correct`` and ``labelled`` [samples], ``intersection`` and ``union`` [samples, 2] around
        the object and of it, and ``ap`` [samples].
        """
        try:
            import sklearn.metrics  # type: ignore[import-untyped, unused-ignore] # noqa: F401
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "evaluate") from error
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        truth = batch.needs("truth", "Segmentation").long()
        result = explain_class(lrp, batch, self.of, (), "Segmentation").result
        size = result.image_size
        if size is None or tuple(truth.shape[1:]) != size:
            raise InputError(
                f"Segmentation needs a truth [samples, height, width] of the image's size {size}, not of "
                f"shape {tuple(truth.shape)}."
            )
        maps = _normalised(SIGNS[self.sign](result.map(size).double())).to(truth.device)
        known = truth >= 0
        found = maps > maps.mean((1, 2), keepdim=True)
        measured = {"correct": ((found == (truth == 1)) & known).sum((1, 2)), "labelled": known.sum((1, 2))}
        each = [((found == value) & known, truth == value) for value in (0, 1)]
        measured["intersection"] = torch.stack([(ours & theirs).sum((1, 2)) for ours, theirs in each], 1)
        measured["union"] = torch.stack([(ours | theirs).sum((1, 2)) for ours, theirs in each], 1)
        measured["ap"] = torch.tensor([_precision(*sample) for sample in zip(maps, truth, strict=True)])
        return measured

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Pixel accuracy, mIoU and mAP."""
        total = {name: value.double().sum(0) for name, value in measured.items()}
        overlap = total["intersection"] / total["union"]
        return {
            "pixel accuracy": float(total["correct"] / total["labelled"]),
            "mIoU": float(overlap.mean()),
            "mAP": float(measured["ap"].mean()),
        }

    def better(self) -> dict[str, int]:
        """Larger, all of them."""
        return {"pixel accuracy": 1, "mIoU": 1, "mAP": 1}


def _normalised(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1]; one that is the same everywhere (all of it clamped) to 0, so that it finds nothing."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(low == high, 0, (maps - low) / (high - low))


def _precision(relevance: Tensor, truth: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    known = truth >= 0
    scores = torch.stack([1 - relevance, relevance])[:, known]
    wanted = torch.stack([truth != 1, truth == 1])[:, known]
    return float(average_precision_score(wanted.flatten().cpu().numpy(), scores.flatten().cpu().numpy()))


@protocol
class TokenF1(Protocol):
    """The k most relevant tokens of a text against those that people marked as its rationale.

    truth: [samples, tokens], 1 for the tokens of the rationale. For every k in ``counts``, the mean over samples of
    F1 = 2 |top k and rationale| / (k + |rationale|), where k is at most a sample's number of tokens, and F1 is 0 where
    no token is marked. keep: ids of special tokens, which are neither.

    Source: Chefer et al. 2021 (arXiv 2012.09838), section 4 (k = 10, 20, ..., 80); rationales and F1: DeYoung et al.
    2020 (ERASER, arXiv 1911.03429), section 4.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Rationales of people",
        "The most relevant tokens are compared with those that people marked.",
    )

    counts: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80)
    of: Of = "predicted"
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1 or list(self.counts) != sorted(set(self.counts)):
            raise InputError(f"counts={self.counts} must be numbers of tokens that rise from 1.")

    def start(self, lrp: ConvertedModel) -> Measure:
        """F1 by sample and number of tokens [samples, counts]."""
        return lambda batch: self._measure(lrp, batch)

    def _measure(self, lrp: ConvertedModel, batch: Batch) -> Measured:
        truth = batch.needs("truth", "TokenF1")
        units = explain_class(lrp, batch, self.of, self.keep, "TokenF1").units
        if truth.shape != units.relevance.shape:
            raise InputError(
                f"TokenF1 needs a truth of the shape of the relevance, {tuple(units.relevance.shape)}, not "
                f"{tuple(truth.shape)}."
            )
        marked = truth.to(units.present.device).bool() & units.present
        ranks = units.ranks("most")
        tops = [units.first(ranks, torch.full_like(units.counts, count)) for count in self.counts]
        scores = [2 * (top & marked).sum(1) / (top.sum(1) + marked.sum(1)).clamp(min=1) for top in tops]
        return {"f1": torch.stack(scores, 1).double()}

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Mean F1 for each number of tokens."""
        means = measured["f1"].mean(0).tolist()
        return {f"F1@{count}": value for count, value in zip(self.counts, means, strict=True)}

    def better(self) -> dict[str, int]:
        """Larger, all of them."""
        return {f"F1@{count}": 1 for count in self.counts}

    def draw(self, evaluation: Evaluation) -> Figure:
        """F1 over the number of tokens."""
        named = {evaluation.ruleset.name: evaluation.measured["f1"]}
        return lines(self.counts, named, "most relevant tokens taken", f"F1 (mean of {len(evaluation)} samples)", "")
