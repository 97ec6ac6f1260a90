"""Mutants of what methods compare with, begin with and book to positions: references, seeds, sinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxlrp.graph.operators import Dependence
from fxlrp.readout import difference, paths, positions
from fxlrp.rules import RULES, elementary, primitives, rescale
from fxlrp.spec import seeds
from tests.mutants.graphs import reference_is_input, rewritten
from tests.mutants.mutant import Mutant, attribute, entry
from tests.readout import test_references
from tests.rules import test_rules
from tests.rulesets import test_attnlrp_variants


def _plain(op: Any, reference: Any, operands: Any) -> Any:
    return op(*operands)


def _at_the_input(x: Tensor, reference: Tensor, place: float) -> Tensor:
    return x


def _one_way(a: Tensor, b: Tensor, a_ref: Tensor, b_ref: Tensor) -> tuple[Tensor, Tensor]:
    return b, a


def _own_winner(dy: Tensor, d: Tensor, d_ref: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    return primitives.ratio(dy, d), torch.zeros_like(d)


def _equal_steps(count: int) -> list[tuple[float, float]]:
    return [((k + 0.5) / count, 1 / count) for k in range(count)]


def _other_way(carried: Any, reference: Tensor, original: Any = difference.changed) -> Tensor:
    return -original(carried, reference)


def _mean_of_all(logits: Tensor, temperature: float) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _without_temperature(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits, -1)


def _not_centred(s: Tensor, expression: Tensor) -> Tensor:
    return primitives.same_value(s, 1.1 * expression)


def _louder(point: Any, sigma: float, generator: Any, original: Any = paths.noisy) -> Any:
    return original(point, 2 * sigma, generator)


def _sums_up(name: str) -> Any:
    return lambda: test_references.test_differences_add_up(name, True)


def _seed(seed: seeds.Seed, scores: Any) -> Any:
    return entry(seeds.SEEDS, seed.name, replace(seed, scores=scores))


def _contrast() -> None:
    test_attnlrp_variants.test_contrastive_relevance_is_the_targets_less_the_mean_of_the_others("gradient")


METHOD_MUTANTS = (
    Mutant("products by their gradient", attribute(rescale, "between", _at_the_input), _sums_up("pairs")),
    Mutant("softmax by its gradient", entry(rescale.FORMS, Dependence.SOFTMAX, _plain), _sums_up("pairs")),
    Mutant(
        "quotients by their gradient",
        entry(rescale.FORMS, Dependence.QUOTIENT, _plain),
        lambda: test_rules.test_rule_keeps_its_promises(RULES["rescale"]),
    ),
    Mutant("weighed quotients by their gradient", attribute(rescale, "two_ways", _one_way), _sums_up("pairs")),
    Mutant("activations by their gradient", entry(rescale.FORMS, Dependence.ACTIVATION, _plain), _sums_up("mlp")),
    Mutant("the input's winner always", attribute(rescale, "winner", _own_winner), _sums_up("cnn")),
    Mutant(
        "softmax by its gradient, alone",
        entry(rescale.FORMS, Dependence.SOFTMAX, _plain),
        lambda: test_rules.test_rule_keeps_its_promises(RULES["rescale"]),
    ),
    Mutant(
        "the reference is the input",
        rewritten(reference_is_input),
        lambda: test_references.test_differences_add_up_in_transformers("bert"),
    ),
    Mutant(
        "places at equal steps",
        attribute(test_references, "gauss_legendre", _equal_steps),
        lambda: test_references.test_places_on_a_path_integrate_polynomials(2),
    ),
    Mutant(
        "a path to nowhere",
        attribute(paths, "gauss_legendre", lambda count: [(1.0, 1.0)]),
        lambda: test_references.test_integrated_gradients_are_complete_as_steps_grow("bert"),
    ),
    Mutant(
        "patching the wrong way",
        attribute(difference, "changed", _other_way),
        test_references.test_patching_a_linear_model_says_what_patching_does,
    ),
    Mutant(
        "noise twice as strong",
        attribute(paths, "noisy", _louder),
        test_references.test_smoothed_gradients_are_the_mean_over_noisy_inputs,
    ),
    Mutant("contrast with every class", _seed(seeds.CONTRASTIVE, _mean_of_all), _contrast),
    Mutant(
        "temperature forgotten",
        _seed(seeds.PROBABILITY, _without_temperature),
        lambda: test_attnlrp_variants.test_probability_seed_is_the_softmax_of_scaled_logits(2.5),
    ),
    Mutant(
        "softmax expansion out of scale in relevance",
        attribute(elementary, "same_value", _not_centred),
        lambda: test_attnlrp_variants.test_relevance_is_input_times_gradient_message("bert"),
    ),
    Mutant(
        "a sink that takes nothing",
        attribute(elementary, "scale_message", lambda x, factor: x),
        lambda: test_attnlrp_variants.test_tokens_and_positions_are_what_the_ledger_says_they_are("llama"),
    ),
    Mutant(
        "positions that nobody counts",
        attribute(positions, "sinks_of", lambda plan: iter(())),
        lambda: test_attnlrp_variants.test_tokens_and_positions_are_what_the_ledger_says_they_are("gpt2"),
    ),
)
