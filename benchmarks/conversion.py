"""Conversion against export: fxlrp's own passes beside ``torch.export``, and how both grow with depth."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from unittest import mock

import torch
from transformers import LlamaForCausalLM

import fxlrp
import fxlrp.capture.program as program
from benchmarks.measure import Timed
from benchmarks.models import Case, llama_config
from fxlrp.capture.export import export


@dataclass(frozen=True)
class Conversion:
    """One model on the meta device: seconds in torch.export and in everything fxlrp does after it, and the peak of
    Python's memory over both.
    """

    layers: int
    nodes: int
    export_seconds: float
    passes_seconds: float
    peak_bytes: int

    @property
    def ratio(self) -> float:
        """fxlrp's passes over torch.export."""
        return self.passes_seconds / self.export_seconds

    @property
    def passes_per_layer(self) -> float:
        """Seconds of fxlrp's passes for each layer: constant where growth is linear."""
        return self.passes_seconds / self.layers

    @property
    def bytes_per_layer(self) -> float:
        """Peak memory for each layer: constant, or falling to a constant, where growth is linear."""
        return self.peak_bytes / self.layers


def convert_llama(layers: int, ruleset: str = "attnlrp") -> Conversion:
    """Convert a Llama of this depth, from the model to the rewritten graph of one ruleset: timed, then once more under
    tracemalloc, which is slow.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(Case("Llama", 64, layers=layers))).eval()
        inputs = {"input_ids": torch.zeros(2, 64, dtype=torch.long)}
    with mock.patch.object(program, "export", Timed(export)) as timed:
        start = time.perf_counter()
        converted = fxlrp.convert(model, ruleset, example_inputs=inputs)
        total = time.perf_counter() - start
    nodes = len(converted.plan.program.graph.nodes)
    del converted
    tracemalloc.start()
    fxlrp.convert(model, ruleset, example_inputs=inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Conversion(layers, nodes, timed.seconds, total - timed.seconds, peak)
