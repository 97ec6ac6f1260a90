"""Other packages in the same table, where they are installed.

captum runs in this process; lxt in one of its own, because it patches the classes of transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.measure import Clock, Contender, Local, peak, seconds
from benchmarks.models import Case, best_logit, gradient_times_input

#: The patch maps of lxt by family: what it offers of AttnLRP and CP-LRP.
LXT_MAPS = {"Llama": ("attnLRP", "cp_LRP"), "BERT": ("attnLRP",)}


class PeerError(Exception):
    """A peer that cannot be measured, and why."""


@contextmanager
def peers(case: Case, model: nn.Module, threads: int) -> Iterator[tuple[list[Contender], list[str]]]:
    """The peers that can run this case, and a note on each that cannot. Processes end with the block."""
    found: list[Contender] = []
    notes: list[str] = []
    started: list[Lxt] = []
    try:
        for make in (_captum, _lxt):
            try:
                made = make(case, model, threads)
            except PeerError as error:
                notes.append(str(error))
            else:
                found.extend(made)
                started.extend(one for one in made if isinstance(one, Lxt))
        yield found, notes
    finally:
        for one in started:
            one.close()


def _captum(case: Case, model: nn.Module, threads: int) -> list[Contender]:
    """captum's gradient x input: its LRP takes no modules but linear, convolution, ReLU, pooling and such."""
    if importlib.util.find_spec("captum") is None:
        raise PeerError("captum is not installed: pip install captum")
    from captum.attr import InputXGradient

    class Scored(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return best_logit(model(inputs_embeds=x))[None]

    method, embeddings = InputXGradient(Scored()), case.inputs()
    return [Local("captum InputXGradient", lambda: method.attribute(embeddings.clone().requires_grad_()).sum(-1))]


def _lxt(case: Case, model: nn.Module, threads: int) -> list[Contender]:
    if importlib.util.find_spec("lxt") is None or importlib.util.find_spec("zennit") is None:
        raise PeerError("lxt is not installed: pip install --no-deps lxt zennit")
    return [Lxt.start(case, patch, threads) for patch in LXT_MAPS[case.family]]


@dataclass(frozen=True)
class Lxt:
    """lxt on a model of its own in another process, which is idle whenever it is not asked to run."""

    name: str
    process: Any
    connection: Connection

    @staticmethod
    def start(case: Case, patch: str, threads: int) -> Lxt:
        """Start the process. Raises :class:`PeerError` if lxt cannot patch the model."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, case, patch, threads), daemon=True)
        process.start()
        theirs.close()
        made = Lxt(f"lxt {patch}", process, ours)
        made._receive()
        return made

    def seconds(self, clock: Clock) -> float:
        """The duration of one run."""
        return self._ask(clock)

    def peak(self) -> int:
        """The peak of tensor memory in one run, in bytes."""
        return int(self._ask(None))

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def _ask(self, question: Clock | None) -> float:
        """The seconds of a run by this clock, or its peak of memory for None."""
        self.connection.send(question)
        return self._receive()

    def _receive(self) -> float:
        try:
            answer = self.connection.recv()
        except EOFError as error:
            raise PeerError(f"{self.name} cannot run: its process ended.") from error
        if isinstance(answer, str):
            raise PeerError(f"{self.name} cannot run: {answer}")
        return float(answer)


def _serve(connection: Connection, case: Case, patch: str, threads: int) -> None:
    """Answer questions until the other side hangs up. An answer in words is a failure."""
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _patch(case.family, patch)
            model, embeddings = case.model(), case.inputs()
            gradient_times_input(model, embeddings)
    except Exception as error:  # whatever an unmaintained patch runs into is the answer
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(0.0)

    def run() -> Tensor:
        return gradient_times_input(model, embeddings)

    while True:
        try:
            clock = connection.recv()
        except EOFError:
            return
        connection.send(float(peak(run)) if clock is None else seconds(run, clock))


def _patch(family: str, patch: str) -> None:
    """Let lxt 2.1 patch transformers 5, which it does not know yet, in this process.

    ``import lxt.efficient`` imports the patches of all its models at once: torchvision's, and a copy of BERT
    from transformers 4 that needs names removed since. Only the measured family's patch is imported here, and
    what it misses is filled in.
    """
    import transformers.pytorch_utils
    from transformers.models.bert import modeling_bert
    from transformers.models.llama import modeling_llama

    # lxt's copy of BERT imports this for pruning heads, which nobody does here.
    pruning: Any = transformers.pytorch_utils
    pruning.find_pruneable_heads_and_indices = None
    # An empty package in the place of lxt.efficient.models, whose __init__ imports every model.
    spec = importlib.util.find_spec("lxt")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    hollow: Any = types.ModuleType("lxt.efficient.models")
    hollow.__path__ = [f"{spec.submodule_search_locations[0]}/efficient/models"]
    hollow.get_default_map = None
    sys.modules["lxt.efficient.models"] = hollow
    from lxt.efficient import monkey_patch

    module: Any = {"Llama": modeling_llama, "BERT": modeling_bert}[family]
    registry = type(module.ALL_ATTENTION_FUNCTIONS)()
    monkey_patch(module, getattr(importlib.import_module(f"lxt.efficient.models.{family.lower()}"), patch))
    if isinstance(module.ALL_ATTENTION_FUNCTIONS, dict):
        # lxt leaves a dict of patched functions where transformers 5 expects its registry.
        registry.update(module.ALL_ATTENTION_FUNCTIONS)
        module.ALL_ATTENTION_FUNCTIONS = registry
    if family == "BERT":
        # What transformers 4 gave every model and configuration, and lxt's copy still asks for.
        module.BertModel.get_head_mask = lambda self, mask, layers: [None] * layers
        module.BertConfig.position_embedding_type = "absolute"
        vars(models)["BertForSequenceClassification"] = module.BertForSequenceClassification
