"""Metrics of other packages over our relevance.

In: batches of float inputs, or what Quantus calls an explanation with. Out: sensitivity and infidelity as captum
computes them; a function that Quantus takes as ``explain_func``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fxlrp.errors import InputError, MissingExtraError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Measured
from fxlrp.evaluate.explanation import Explanation, Of, explain_class
from fxlrp.evaluate.memory import drawing
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.spec.ruleset import Ruleset

if TYPE_CHECKING:
    import numpy as np


@protocol
class _Captum(Protocol):
    """A metric of captum, for models whose main input is floats; others are given along unchanged."""

    samples: int = Field(default=10, ge=1)
    of: Of = "predicted"
    seed: int = 0

    def start(self, lrp: ConvertedModel) -> Measure:
        """captum's number for each sample."""
        try:
            import captum.metrics as metrics
        except ImportError as error:
            raise MissingExtraError("captum", "evaluate") from error
        return lambda batch: self._measure(metrics, lrp, batch)

    def _measure(self, metrics: Any, lrp: ConvertedModel, batch: Batch) -> Measured:
        explanation = explain_class(lrp, batch, self.of, (), type(self).__name__)
        if not explanation.units.value.is_floating_point():
            raise InputError(
                f"{type(self).__name__} adds noise to the main input, which must be floats, not token ids."
            )
        found = self.metric(metrics, explanation, drawing(batch, self.seed))
        return {self.name: found.detach().double()}

    @property
    @abstractmethod
    def name(self) -> str:
        """What the statistic is called."""

    @abstractmethod
    def metric(self, metrics: Any, explanation: Explanation, generator: torch.Generator) -> Tensor:
        """The numbers [samples] that captum computes."""

    def statistics(self, measured: Measured) -> dict[str, float]:
        """The mean over samples."""
        return {self.name: float(measured[self.name].nanmean())}

    def better(self) -> dict[str, int]:
        """Smaller."""
        return {self.name: -1}


@protocol
class CaptumSensitivity(_Captum):
    """max over x' of |R(x') - R(x)| / |R(x)|, x' = x + u with every u_i uniform in [-radius, radius].

    Computed by ``captum.metrics.sensitivity_max`` from ``samples`` draws of x' (extra 'evaluate'). Both explain the
    class of x. Source: Yeh et al. 2019 (arXiv 1901.09392), definition 3.
    """

    radius: float = 0.02

    @property
    def name(self) -> str:
        """What the statistic is called."""
        return "sensitivity"

    def metric(self, metrics: Any, explanation: Explanation, generator: torch.Generator) -> Tensor:
        """captum's sensitivity [samples]."""

        def relevance(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
            near, repeats = repeated(explanation, value[0] if isinstance(value, tuple) else value)
            target = [place for place in explanation.result.target for _ in range(repeats)]
            return (explanation.lrp.attribute(near, target=target).relevance.detach(),)

        def moved(value: Tensor | tuple[Tensor, ...]) -> Tensor:
            only = value[0] if isinstance(value, tuple) else value
            return only + self.radius * (2 * _drawn(torch.rand, only, generator) - 1)

        found: Tensor = metrics.sensitivity_max(
            relevance, explanation.units.value, perturb_func=moved, n_perturb_samples=self.samples
        )
        return found


@protocol
class CaptumInfidelity(_Captum):
    """The mean over x' of (sum_i R_i (x_i - x'_i) / x_i - (f(x) - f(x')))^2, x' = x + noise e with normal e.

    Computed by ``captum.metrics.infidelity`` from ``samples`` draws of x' (extra 'evaluate'), with relevance as a
    contribution: R / x takes the place of a gradient. ``normalize`` scales R first so that its size does not count.
    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 2.
    """

    noise: float = 0.02
    normalize: bool = False

    @property
    def name(self) -> str:
        """What the statistic is called."""
        return "infidelity"

    def metric(self, metrics: Any, explanation: Explanation, generator: torch.Generator) -> Tensor:
        """captum's infidelity [samples]."""
        value, relevance = explanation.units.value, explanation.result.relevance.detach()
        if relevance.shape != value.shape:
            raise InputError(
                f"CaptumInfidelity needs relevance of the input's shape {tuple(value.shape)}; "
                f"'{explanation.result.ruleset.name}' gives {tuple(relevance.shape)}."
            )

        def watched(near: Tensor) -> Tensor:
            inputs, repeats = repeated(explanation, near)
            target = torch.as_tensor(explanation.result.target).repeat_interleave(repeats, 0)
            return explanation.chosen(target)(explanation.logits(inputs))

        @metrics.infidelity_perturb_func_decorator(multiply_by_inputs=True)
        def moved(near: Tensor, baselines: Any = None) -> Tensor:
            return near + self.noise * _drawn(torch.randn, near, generator)

        found: Tensor = metrics.infidelity(
            watched, moved, value, relevance, n_perturb_samples=self.samples, normalize=self.normalize
        )
        return found


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    return draw(like.shape, generator=generator, dtype=torch.float64).to(like)


def repeated(explanation: Explanation, value: Tensor) -> tuple[Mapping[str, Any], int]:
    """The inputs with another ``value``, which holds each sample so many times in a row."""
    count = len(explanation.units.value)
    repeats = len(value) // count
    along = {
        name: other.repeat_interleave(repeats, 0) if isinstance(other, Tensor) and len(other) == count else other
        for name, other in explanation.given.items()
    }
    return {**along, explanation.units.name: value}, repeats


def quantus_explainer(
    ruleset: str | Path | Mapping[str, Any] | Ruleset = "attnlrp",
) -> Callable[..., np.ndarray[Any, Any]]:
    """A function that Quantus takes as ``explain_func``: (model, inputs, targets, ...) to relevance.

    inputs: floats [samples, ...] as an array or a tensor; targets: classes [samples]. Gives relevance of the inputs'
    shape, or [samples, 1, height, width] where a ruleset gives it by patch of an image. A model is converted once, and
    its weights are those that it has at each call. Quantus itself (Hedström et al. 2023, arXiv 2202.06861) is not
    needed here::

        quantus.FaithfulnessCorrelation()(
            model=model, x_batch=x, y_batch=y, explain_func=quantus_explainer("attnlrp"), device="cpu"
        )
    """
    last: list[ConvertedModel] = []

    def explain_func(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray[Any, Any]:
        if not last or last[0].model is not model:
            last[:] = [convert(model, ruleset)]
        lrp = last[0]
        value = torch.as_tensor(inputs).to(device=lrp.device, dtype=lrp.dtype)
        result = lrp.attribute(value, target=torch.as_tensor(targets).flatten().tolist())
        relevance = result.relevance.detach()
        if relevance.shape != value.shape and result.image_size is not None:
            relevance = result.map(result.image_size)[:, None]
        array: np.ndarray[Any, Any] = relevance.cpu().numpy()
        return array

    return explain_func
