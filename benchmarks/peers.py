"""Other packages in the same table, where they are installed: captum here, lxt in a process of its own, whose classes it patches."""

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

from benchmarks.measure import Contender, Local, peak, seconds
from benchmarks.models import Case, best_logit, gradient_times_input

#: The patch maps of lxt by family: what it offers of AttnLRP and CP-LRP.
LXT_MAPS = {"Llama": ("attnLRP", "cp_LRP"), "BERT": ("attnLRP",)}


class PeerError(Exception):
    """A peer that cannot be measured, and why."""


@contextmanager
def peers(case: Case, model: nn.Module, threads: int) -> Iterator[tuple[list[Contender], list[str]]]:
    """The peers that can run this case, and a note on each that cannot. Their processes end with the block."""
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
    """captum's gradient x input: its LRP refuses modules other than Linear, Conv, ReLU, Dropout and pooling."""
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
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, case, patch, threads), daemon=True)
        process.start()
        theirs.close()
        made = Lxt(f"lxt {patch}", process, ours)
        made._receive()
        return made

    def seconds(self) -> float:
        """The duration of one run."""
        return float(self._ask("seconds"))

    def peak(self) -> int:
        """The peak of tensor memory in one run, in bytes."""
        return int(self._ask("peak"))

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def _ask(self, question: str) -> float:
        self.connection.send(question)
        return self._receive()

    def _receive(self) -> float:
        answer = self.connection.recv()
        if isinstance(answer, str):
            raise PeerError(f"{self.name} cannot run: {answer}")
        return float(answer)


def _serve(connection: Connection, case: Case, patch: str, threads: int) -> None:
    """Answer questions until the other side hangs up. An answer in words is a failure."""
    torch.set_num_threads(threads)
    measures = {"seconds": seconds, "peak": peak}
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
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(measures[question](lambda: gradient_times_input(model, embeddings)))


def _patch(family: str, patch: str) -> None:
    """Let lxt 2.1 patch transformers 5, which it does not know yet, in this process.

    lxt imports patches for all its models at once, among them copies of modules of transformers 4 that need names and methods
    removed since, and torchvision. Only what the measured family needs is imported, and what that misses is filled in.
    """
    import transformers.pytorch_utils
    from transformers import BertConfig
    from transformers.models.bert import modeling_bert
    from transformers.models.llama import modeling_llama

    # Removed in transformers 5; lxt's copy of BERT imports it for pruning heads, which nobody does here.
    transformers.pytorch_utils.find_pruneable_heads_and_indices = None
    folder = importlib.util.find_spec("lxt").submodule_search_locations[0]  # type: ignore[union-attr, index]
    hollow: Any = types.ModuleType("lxt.efficient.models")
    hollow.__path__, hollow.get_default_map = [f"{folder}/efficient/models"], None
    sys.modules["lxt.efficient.models"] = hollow
    from lxt.efficient import monkey_patch

    module = {"Llama": modeling_llama, "BERT": modeling_bert}[family]
    patches = importlib.import_module(f"lxt.efficient.models.{family.lower()}")
    registry = type(modeling_llama.ALL_ATTENTION_FUNCTIONS)
    monkey_patch(module, getattr(patches, patch))
    if family == "Llama" and type(module.ALL_ATTENTION_FUNCTIONS) is dict:
        # lxt leaves a dict where transformers 5 expects its registry, which has get_interface.
        functions = registry()
        functions.update(module.ALL_ATTENTION_FUNCTIONS)
        module.ALL_ATTENTION_FUNCTIONS = functions
    if family == "BERT":  # lxt's copy is of transformers 4, which had these two
        BertConfig.position_embedding_type = "absolute"
        module.BertModel.get_head_mask = lambda self, mask, layers: [None] * layers
        import transformers

        transformers.BertForSequenceClassification = module.BertForSequenceClassification
