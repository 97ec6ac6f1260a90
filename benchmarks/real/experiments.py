"""Which ruleset explains each network best, and whether AttnLRP's paper is right about the order on language models.

In: the networks. Out: an :class:`~benchmarks.papers.experiment.Experiment` each, as those of the papers are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.papers.experiment import Column, Experiment, Method
from benchmarks.real.networks import NETWORKS, Network
from fxlrp.evaluate import AreaBetween, Eraser, Perturbation

RANDOM = Method("random", None)
LANGUAGE = (
    RANDOM,
    Method("rollout", "rollout"),
    Method("gradient x input", "gradient"),
    Method("integrated gradients", "integrated-gradients"),
    Method("LRP (AH + LN)", "ali2022"),
    Method("CP-LRP", "cp-lrp"),
    Method("AttnLRP", "attnlrp"),
)
PICTURES = (
    RANDOM,
    Method("gradient x input", "gradient"),
    Method("integrated gradients", "integrated-gradients"),
    Method("guided backprop", "guided-backprop"),
    Method("DeepLIFT", "deeplift-rescale"),
    Method("LRP (epsilon)", "epsilon"),
    Method("LRP (epsilon, plus)", "epsilon-plus"),
    Method("LRP (epsilon, gamma, box)", "epsilon-gamma-box"),
    Method("AttnLRP", "attnlrp"),
)
WEAKER = ("gradient x input", "integrated gradients", "rollout")
#: The claim: AttnLRP above CP-LRP, and both above what is weaker.
STEPS = (
    ("CP-LRP", "AttnLRP"),
    *((name, "AttnLRP") for name in WEAKER),
    *((name, "CP-LRP") for name in WEAKER),
)
SOURCE, URL = "Achtibat et al. 2024, ICML, section 4.1", "https://arxiv.org/abs/2402.05602"
SHARES = (0.1, 0.2, 0.5)


def experiment(key: str, network: Callable[[], Network]) -> Experiment:
    """The experiment on a network; ``network`` loads it."""
    loaded = network()
    language = "input_ids" in loaded.samples
    columns = [
        Column("ABPC", AreaBetween(replace=loaded.replace, keep=loaded.keep), "abpc"),
        Column("comprehensiveness", Eraser(SHARES, loaded.replace, keep=loaded.keep), "comprehensiveness"),
    ]
    if not language:
        columns.append(Column("pixel flip", Perturbation("most", "remove", replace=loaded.replace), "auac", False))

    def build() -> tuple[Any, Sequence[Any]]:
        return loaded.model, loaded.batches

    _, title, asked = NETWORKS[key]
    return Experiment(
        key=key,
        title=title,
        source=SOURCE,
        url=URL,
        theirs="LLaMA 2, Mixtral and Flan-T5 on IMDB, Wikipedia and SQuAD",
        ours=f"{title}: {asked}",
        methods=LANGUAGE if language else PICTURES,
        columns=tuple(columns),
        steps=STEPS if language else (),
        ordered=("ABPC", "comprehensiveness") if language else (),
        build=build,
    )
