"""Random configurations of many families keep the laws of `tests.support.studies`, in float64 and float32.

Plain runs have twenty in float64 that between them differ most, every fifth of these in float32 as well. `make slow`
has hundreds more, among them deeper ones and rotations that are scaled by the length at hand. The mutants at the end
show that each law can be broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import fxlrp
from fxlrp.explain import model as door
from tests.support import studies
from tests.support.configurations import FAMILIES, covering, draw
from tests.support.drawn import Side
from tests.support.studies import Study

TYPES = {"float64": torch.float64, "float32": torch.float32}
PLAIN, ALL = covering(20, seeds=5), 230


def _cases() -> Iterator[object]:
    families = list(FAMILIES)
    for number in range(ALL):
        seed, index = divmod(number, len(families))
        for dtype in TYPES:
            case = (families[index], seed)
            marks = [] if case in (PLAIN if dtype == "float64" else PLAIN[2::5]) else [pytest.mark.slow]
            yield pytest.param((*case, dtype), id=f"{families[index]}-{seed}-{dtype}", marks=marks)


# A rotation that is scaled by length, and a scan, decide by values and sizes: they are recorded anew.
pytestmark = pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")


@pytest.fixture(scope="module", params=_cases())
def study(request: pytest.FixtureRequest) -> Study:
    family, seed, dtype = request.param
    return Study(draw(family, seed), TYPES[dtype])


def test_gradient_is_autograd_of_the_untouched_model(study: Study) -> None:
    studies.gradient_holds(study)


def test_a_batch_is_its_samples(study: Study) -> None:
    studies.batches_hold(study)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(study: Study, side: Side) -> None:
    if side not in study.drawn.sides:
        pytest.skip("the family takes no padding on this side")
    studies.padding_holds(study, side)


def test_ledgers_close(study: Study) -> None:
    studies.ledgers_close(study)


def test_the_conversion_computes_what_the_model_does(study: Study) -> None:
    studies.outputs_hold(study)


def test_the_model_is_left_as_it_was(study: Study) -> None:
    studies.model_stands(study)


def test_a_plain_run_has_every_family_and_what_the_first_two_of_each_choose() -> None:
    chosen = set().union(*(draw(*case).switches for case in PLAIN))
    first = set().union(*(draw(family, seed).switches for family in FAMILIES for seed in range(2)))
    assert {family for family, _ in PLAIN} == {*FAMILIES}
    assert len(set(PLAIN)) == len(PLAIN) == 20
    assert len(chosen) >= len(first)


# ------------------------------------------------------------------------------------------------------- mutants
@cache
def healthy() -> Study:
    """A configuration that is exact in float64 and takes padding on both sides."""
    return Study(draw("bert", 0), torch.float64)


Result = fxlrp.Attribution


def _changed(change: Callable[[Any, Result], Result]) -> Callable[..., Result]:
    """Attributions after ``change``, which is given the inputs, too."""
    return lambda lrp, inputs, *others, honest=door.attribute: change(inputs, honest(lrp, inputs, *others))


def _asked(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., Result]:
    """Attributions of other inputs and another target than were asked for."""
    return lambda lrp, inputs, target, *others, honest=door.attribute: honest(lrp, *change(inputs, target), *others)


def _main(change: Callable[[Any, Result], torch.Tensor]) -> Callable[..., Result]:
    """Attributions whose main input's relevance is another."""
    return _changed(lambda inputs, found: replace(found, inputs=found.inputs | {"input_ids": change(inputs, found)}))


def _left_behind(spoil: Callable[[Any], object]) -> Callable[..., Result]:
    """Attributions that leave something behind in the model, or in the process."""

    def mutant(lrp: Any, *arguments: Any, honest: Any = door.attribute) -> Result:
        found: Result = honest(lrp, *arguments)
        spoil(lrp.model)
        return found

    return mutant


def _without_bias(inputs: Any, found: Result) -> Result:
    if found.ledger is None:
        return found
    kept = tuple(entry for entry in found.ledger.entries if entry.kind != "bias")
    return replace(found, ledger=replace(found.ledger, entries=kept))


def _other_outputs(inputs: Any, found: Result) -> Result:
    found.outputs.logits.mul_(1 + 1e-6)
    return found


def _counted(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


right, left = (lambda study, side=side: studies.padding_holds(study, side) for side in ("right", "left"))
Law = Callable[[Study], None]
#: What breaks a law, and the law that must notice.
MUTANTS: dict[str, tuple[Law, Callable[..., Result]]] = {
    "a feature's gradient is forgotten": (
        studies.gradient_holds,
        _main(lambda inputs, found: found.relevance - found.features[..., 0]),
    ),
    "features are exchanged": (
        studies.gradient_holds,
        _changed(lambda inputs, found: replace(found, features=found.features.roll(1, -1))),
    ),
    "another class is explained": (
        studies.gradient_holds,
        _asked(lambda inputs, target: (inputs, None if target is None else (1, studies.CLASS - 1))),
    ),
    "samples are exchanged": (studies.batches_hold, _main(lambda inputs, found: found.relevance.roll(1, 0))),
    "samples are averaged": (
        studies.batches_hold,
        _main(lambda inputs, found: found.relevance.mean(0).expand_as(found.relevance)),
    ),
    "padding receives a little": (
        right,
        _main(lambda inputs, found: found.relevance + 1e-12 * (1 - inputs["attention_mask"])),
    ),
    "the mask is left out": (
        right,
        _asked(lambda inputs, target: (inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}, target)),
    ),
    "positions count padding": (
        left,
        _asked(lambda inputs, target: (inputs | {"position_ids": _counted(inputs["input_ids"])}, target)),
    ),
    "biases have no entry": (studies.ledgers_close, _changed(_without_bias)),
    "inputs differ from their entry": (studies.ledgers_close, _main(lambda inputs, found: 1.001 * found.relevance)),
    "outputs are off": (studies.outputs_hold, _changed(_other_outputs)),
    "a weight is written": (
        studies.model_stands,
        _left_behind(lambda model: model.get_input_embeddings().weight.data.mul_(1 + 1e-12)),
    ),
    "an attribute is left": (studies.model_stands, _left_behind(lambda model: setattr(model, "left_behind", 1))),
    "a flag is left": (studies.model_stands, _left_behind(lambda model: setattr(model.config, "use_cache", False))),
    "a layer is frozen": (studies.model_stands, _left_behind(lambda model: model.classifier.requires_grad_(False))),
    "a gradient is left": (
        studies.model_stands,
        _left_behind(lambda model: setattr(model.classifier.bias, "grad", torch.zeros(3, dtype=torch.float64))),
    ),
    "a random number is drawn": (studies.model_stands, _left_behind(lambda model: torch.rand(()))),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_law_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law, mutant = MUTANTS[name]
    study = healthy()
    vars(study).pop("before", None)  # what an earlier mutant has left is how the model was
    law(study)
    monkeypatch.setattr(door, "attribute", mutant)
    with pytest.raises(AssertionError):
        law(study)
