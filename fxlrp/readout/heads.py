"""Relevance by attention head and token: in go a converted model, inputs and a target, out come maps of attentions.

What a head moves are the values v of its tokens, so the relevance of v says which tokens the head brought to account.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from fxlrp.engine.conversion import Conversion
from fxlrp.engine.targets import Target
from fxlrp.errors import InputError
from fxlrp.readout.attentions import sites
from fxlrp.readout.passes import Task


def head_relevance(
    lrp: Conversion,
    inputs: Any,
    *,
    target: Target = None,
    contrast: Target = None,
    of: Literal["values", "outputs"] = "values",
) -> dict[str, Tensor]:
    """The relevance [batch, heads, tokens] in each attention, by module path and in the order of the graph.

    R_hk = sum_d R(v_hkd), of the ``values`` that head h takes from token k, or of the ``outputs`` A v that it gives to
    token k, before heads are mixed. Keys and values that several heads share count for each of them. Relevance has the
    unit of the explained output. Raises :class:`InputError` for a model without attention that is recognised, and for
    attention among parts of a sample (windows).
    """
    if of not in ("values", "outputs"):
        raise InputError(f"of='{of}' is neither 'values', which heads take from tokens, nor 'outputs'.")
    task = Task(lrp, lrp.prepare(inputs), target, contrast)
    found = sites(task)
    nodes = tuple(site.values if of == "values" else site.output for site in found)
    propagated = task.propagate(nodes, inputs=False)
    batch = len(propagated.explained)
    heads = {}
    for site, carried in zip(found, propagated.taps, strict=True):
        relevance = carried.relevance.sum(-1)
        if len(relevance) % batch or (relevance.ndim > 2 and len(relevance) != batch):
            raise InputError(
                f"The attention of '{site.place}' has the shape {tuple(relevance.shape)} for {batch} samples: it is "
                "among parts of a sample, so its heads have no map over all tokens."
            )
        heads[site.place] = relevance.reshape(batch, -1, relevance.shape[-1])
    return heads
