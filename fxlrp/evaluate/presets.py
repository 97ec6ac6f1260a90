"""Perturbation as papers ran it: in goes what a data set leaves open, out comes a :class:`Perturbation`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.evaluate.explanation import Of
from fxlrp.evaluate.perturbation import Perturbation
from fxlrp.evaluate.units import Replacement

_UP_TO_NINE_TENTHS = tuple(step / 10 for step in range(10))


def ali2022_activation(unknown: int, **options: Any) -> Perturbation:
    """Units are put back, the most relevant first: the larger ``auac``, the better.

    unknown: the id of [UNK], which stands for what is not yet back. Watched is softmax(f)_c of the label c, at the
    fractions 0, 0.1, ..., 1 (rounded up). Source: Ali et al. 2022 (arXiv 2202.07304), section 5.2.
    """
    return Perturbation("most", "add", replace=unknown, **{"of": "label", **options})


def ali2022_pruning(unknown: int, **options: Any) -> Perturbation:
    """Units are replaced, those of least absolute relevance first: the smaller ``au_mse``, the better.

    unknown: the id of [UNK]. ``au_mse`` is the area under sum_k (f_k(x) - f_k(x_p))^2 over all logits k. Source: Ali et
    al. 2022 (arXiv 2202.07304), section 5.2.
    """
    return Perturbation("absolute-least", "remove", replace=unknown, **{"of": "label", **options})


def chefer2021_positive(of: Of = "predicted", replace: Replacement | None = None, **options: Any) -> Perturbation:
    """The most relevant pixels are replaced by black first: the smaller ``auac``, the better.

    Watched is the accuracy on the labels, at the fractions 0, 0.1, ..., 0.9 (rounded down), while the ``predicted``
    class or the ``label`` is explained. ``auac`` is the trapezoid from 0, where it is the accuracy on whole images, to
    0.9; the paper's tables give it times 100. replace: black as the model sees it, which for normalised images is
    :func:`black`. Source: Chefer et al. 2021 (arXiv 2012.09838), section 4.
    """
    return _chefer2021("most", of, replace, options)


def chefer2021_negative(of: Of = "predicted", replace: Replacement | None = None, **options: Any) -> Perturbation:
    """The least relevant pixels are replaced by black first: the larger ``auac``, the better.

    All else is that of :func:`chefer2021_positive`. Source: Chefer et al. 2021 (arXiv 2012.09838), section 4.
    """
    return _chefer2021("least", of, replace, options)


def _chefer2021(order: Any, of: Of, replace: Replacement | None, options: dict[str, Any]) -> Perturbation:
    usual = {"fractions": _UP_TO_NINE_TENTHS, "watch": "accuracy", "watch_label": True, "rounding": "down"}
    return Perturbation(order, "remove", replace=replace, of=of, **{**usual, **options})


def black(mean: Any, std: Any) -> Tensor:
    """Black pixels [channels] of images that were normalised as (x - mean) / std: -mean / std."""
    return -torch.as_tensor(mean) / torch.as_tensor(std)
