"""What attention lets each row see: the keys that its masks leave, whatever the scores are.

In: a task and its attentions. Out: one bool [batch, queries, keys] an attention. What a mask is called, how it is made
and which of its values hides play no part: the model's own graph is run from the scores on, with others in their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.errors import ReadingError
from fxlrp.graph.live import between
from fxlrp.graph.nodes import run, source_line, tensor_value
from fxlrp.readout.attentions import AttentionSite, Map, by_head
from fxlrp.readout.passes import Task

#: A weight below this share of its row's largest is hidden: masks of -100 and of -inf are alike, in any precision.
HIDDEN = torch.finfo(torch.float32).tiny
#: A weight above this share is seen. One in between, as of a token far away, may be taken for either.
SEEN = torch.finfo(torch.float32).eps

#: How far scores are apart that are to be nearly equal and yet in an order.
RISE = 1e-4


def visible(task: Task, maps: Sequence[Map]) -> list[Tensor]:
    """Which keys each row of the attentions ``maps`` sees, in any of its heads: bool [batch, queries, keys].

    Between q k^T and the product with v stand scales, masks, biases and the softmax. They are computed with every score
    0, and a key is hidden where its weight is nothing beside the largest of its row. Raises :class:`ReadingError` where
    other scores have other keys hidden, as where the largest few are kept: what is hidden there is no padding.
    """
    program, sites = task.captured.program, [found.site for found in maps]
    inner = {site: between(site.scores, site.weights) for site in sites}
    beside = {site: {n for node in inner[site] for n in node.all_input_nodes} - inner[site] for site in sites}
    other_shape = [site.scores for site in sites if not _as_scores(site)]
    wanted = [*other_shape, *(n for site in sites for n in beside[site] - {site.scores})]
    values = run(program.graph, program.arguments(task.lrp.model, task.given), wanted)
    seen = []
    for site, found in zip(sites, maps, strict=True):
        scores = torch.zeros_like(values.get(site.scores, found.weights), dtype=site.scores.meta["val"].dtype)
        known = {node: values[node] for node in beside[site] - {site.scores}}
        rising = torch.linspace(0, RISE, scores.numel(), dtype=scores.dtype, device=scores.device).view_as(scores)
        weights = [
            run(program.graph, {}, [site.weights], known=known | {site.scores: other})[site.weights]
            for other in (scores, rising)
        ]
        shares = [_share(by_head(each, len(found.weights), site.place)) for each in weights]
        seen.append(_alike(site, shares[0], shares[1], _share(found.weights)).any(1))
    return seen


def _as_scores(site: AttentionSite) -> bool:
    """Whether the scores of an attention have the shape of its weights, [batch, heads, queries, keys]: if so, zeros can
    stand for them that are known without a run of the model.
    """
    scores, weights = tensor_value(site.scores), tensor_value(site.weights)
    return scores is not None and weights is not None and scores.ndim == 4 and scores.shape == weights.shape


def _share(weights: Tensor) -> Tensor:
    """Weights beside the largest of their row."""
    return weights / weights.amax(-1, keepdim=True)


def _alike(site: AttentionSite, equal: Tensor, unequal: Tensor, own: Tensor) -> Tensor:
    """What is seen with equal scores, if it is seen with others as well."""
    seen, now = equal >= HIDDEN, unequal >= HIDDEN  # a row of NaN sees nothing
    hidden_now = seen & ~now & (equal > SEEN)
    if bool((hidden_now | ~seen & ((unequal > SEEN) | (own > SEEN))).any()):
        raise ReadingError(
            f"Which tokens the attention of '{site.place}' ({source_line(site.weights)}) hides depends on its scores: "
            "padding cannot be told from what it does not choose, and the reading takes a mean, a minimum or a maximum "
            "over the tokens that count."
        )
    return seen
