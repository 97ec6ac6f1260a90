"""Sanity check by randomised parameters: an explanation of the model must not survive the model.

In: batches. Out: rank correlations of relevance with that of the model whose parameters are drawn anew, block by block
from the output down.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fxlrp.capture.elsewhere import check_here
from fxlrp.engine.conventions import block_names
from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.evaluation import Evaluation, Measured, Wording
from fxlrp.evaluate.explanation import Of, explain, explain_class
from fxlrp.evaluate.figures import lines
from fxlrp.evaluate.protocol import Measure, Protocol, protocol
from fxlrp.evaluate.ranks import spearman
from fxlrp.explain.model import ConvertedModel, convert

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@protocol
class ParameterRandomisation(Protocol):
    """Spearman's rho, within each sample, of its relevance and of that under randomised parameters.

    Stages are the modules of the model from the output down: the blocks of its longest list and the modules before and
    after it, in the order of their definition; without such a list, every module that owns parameters. With ``cascade``
    a stage is randomised together with all above it, else alone. Every number of a parameter is drawn from a normal
    distribution with the parameter's own mean and standard deviation, so that those which are constant (zero biases,
    unit scales) stay. The class explained is that of the original model. rho is kept of relevance and of its absolute
    value, which tells an explanation that only changes sign.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.1.
    """

    WORDS: ClassVar[Wording] = Wording(
        "Random parameters",
        "Parameters are made random, from the output down: an explanation that depends on the model becomes "
        "another one.",
        {
            "last": "rank correlation with the original explanation, everything random",
            "|last|": "the same of absolute relevance",
            "mean": "rank correlation, mean over stages",
            "|mean|": "the same of absolute relevance",
        },
    )

    cascade: bool = True
    of: Of = "predicted"
    keep: tuple[int, ...] = ()
    seed: int = 0

    def start(self, lrp: ConvertedModel) -> Measure:
        """rho by stage, named '00 ...', '01 ...' from the output down: [samples, 2], of relevance and of its size."""
        randomised = _Randomised(lrp, self.cascade, self.seed)

        def measure(batch: Batch) -> Measured:
            first = explain_class(lrp, batch, self.of, self.keep, "ParameterRandomisation")
            one, present = first.units.relevance, first.units.present
            measured = {}
            for name, conversion in randomised.stages():
                other = explain(conversion, batch, first.result.target).units.relevance
                rhos = [spearman(one, other, present), spearman(one.abs(), other.abs(), present)]
                measured[name] = torch.stack(rhos, 1)
            return measured

        return measure

    def statistics(self, measured: Measured) -> dict[str, float]:
        """Mean rho when the last stage is randomised (with ``cascade``: everything), and its mean over all stages."""
        every = by_stage(measured).nanmean(0)
        last, mean = every[-1].tolist(), every.nanmean(0).tolist()
        return {"last": last[0], "|last|": last[1], "mean": mean[0], "|mean|": mean[1]}

    def better(self) -> dict[str, int]:
        """Small."""
        return {"|last|": -1, "|mean|": -1}

    def draw(self, evaluation: Evaluation) -> Figure:
        """rho over the stages, from the output down."""
        rows = by_stage(evaluation.measured)
        named = {"relevance": rows[..., 0], "absolute relevance": rows[..., 1]}
        done = "and all above" if self.cascade else "alone"
        figure = lines(
            range(rows.shape[1]),
            named,
            f"randomised, {done}",
            "Spearman's rho with the original",
            evaluation.ruleset.name,
        )
        labels = [name[3:] for name in sorted(evaluation.measured)]
        axes = figure.axes[0]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
        axes.axhline(0, color="black", linewidth=0.6)
        return figure


def by_stage(measured: Measured) -> Tensor:
    """rho [samples, stages, 2], from the output down."""
    return torch.stack([measured[name] for name in sorted(measured)], 1).double()


class _Randomised:
    """A copy of a model whose stages are randomised one after the other, and its conversion, made once."""

    def __init__(self, lrp: ConvertedModel, cascade: bool, seed: int) -> None:
        check_here(lrp.model, "randomising its weights")
        self.model = copy.deepcopy(lrp.model)
        self.lrp = convert(self.model, lrp.ruleset, strict=lrp.conversion.strict)
        self.cascade = cascade
        self.original = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        generator = torch.Generator().manual_seed(seed)
        self.drawn = {name: redrawn(value, generator) for name, value in self.original.items()}
        named = enumerate(stages(self.model).items())
        self.names = {f"{index:02d} {path}": names for index, (path, names) in named}

    def stages(self) -> Iterator[tuple[str, ConvertedModel]]:
        """The conversion under the parameters of each stage, from the output down."""
        parameters = dict(self.model.named_parameters())
        self._set(parameters, self.original, parameters)
        for stage, names in self.names.items():
            if not self.cascade:
                self._set(parameters, self.original, parameters)
            self._set(parameters, self.drawn, names)
            yield stage, self.lrp

    @staticmethod
    def _set(parameters: dict[str, nn.Parameter], values: dict[str, Tensor], names: Iterable[str]) -> None:
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(values[name])


def redrawn(value: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers with the mean and standard deviation of ``value``; integers as they are."""
    if not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    wide = value.double().cpu()
    return (wide.mean() + wide.std(correction=0) * noise).to(value)


def stages(model: nn.Module) -> dict[str, list[str]]:
    """The names of the parameters that are randomised together, by module path, from the output down.

    Modules are taken in the order in which the model defines them. Raises :class:`InputError` for a model without
    parameters.
    """
    blocks = block_names(model)
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(_stage(name, blocks) or "(model)", []).append(name)
    if not found:
        raise InputError(f"{type(model).__name__} has no parameters, so that nothing can be randomised.")
    return dict(reversed(found.items()))


def _stage(parameter: str, blocks: list[str]) -> str:
    """The path of the outermost module that holds a parameter and no list of blocks; without blocks, of its owner."""
    parts = parameter.split(".")[:-1]
    paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))] if blocks else []
    outermost = (path for path in paths if not any(block.startswith(f"{path}.") for block in blocks))
    return next(outermost, ".".join(parts))
