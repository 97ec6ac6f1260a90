"""Fast forms of fused operations under a combination of rules; the expanded graph stays their definition.

Each kernel says for which decisions on the operation's parts it stands, or returns None. Tests compare each
with the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxlrp.capture.canonical import Fused
from fxlrp.graph.operator_table import (
    ATTENTION,
    BATCH_NORM,
    INSTANCE_NORM,
    LAYER_NORM,
    LAYER_NORM_BACKWARD,
)
from fxlrp.graph.operators import packet
from fxlrp.planning.plan import Decision, Plan
from fxlrp.rules.operation import softmax_of_some
from fxlrp.rules.primitives import carry, scale_message
from fxlrp.rules.rule import Conserves, Message

#: A kernel takes the region and returns a function of the fused operator's own arguments, or None.
Kernel = Callable[["Region"], Callable[..., Tensor] | None]
KERNELS: dict[Any, Kernel] = {}
#: How a fused operator runs where no rule changed it, if not as it is.
PLAIN: dict[Any, Callable[..., Tensor]] = {}
#: An argument (position, name) that these functions take in a prepared form, made once however many operators share it.
PREPARED: dict[Any, tuple[int, str, Callable[..., Any]]] = {}
_CHUNK = 2**18  # entries of an attention matrix recomputed at a time: 1 MB in float32, within the cache


def kernel(target: Any) -> Callable[[Kernel], Kernel]:
    """Register the kernel of a fused operator."""

    def register(function: Kernel) -> Kernel:
        KERNELS[target] = function
        return function

    return register


@dataclass(frozen=True)
class Region:
    """The nodes that one fused operator became, with what the plan decided for each."""

    plan: Plan
    fused: Fused
    parts: Mapping[str, fx.Node]

    @staticmethod
    def of(plan: Plan, fused: Fused) -> Region:
        """Find the labelled parts among the region's nodes."""
        labels = plan.structure.labels
        parts = {
            label.split(".", 1)[1]: node for node in fused.members for label in labels.get(node, ()) if "." in label
        }
        return Region(plan, fused, parts)

    def decision(self, part: str) -> Decision | None:
        """What was decided for a part; None for a plain gradient or where nothing arrives."""
        return self.plan.decisions.get(self.parts[part]) if part in self.parts else None

    def holds(self, part: str) -> bool:
        """Whether the rule at a part passes no relevance on: its value is a constant."""
        decision = self.decision(part)
        return decision is not None and decision.rule.conserves is Conserves.NOTHING

    def scales(self, part: str) -> tuple[float, float] | None:
        """The numbers by which the messages of a part's two factors are scaled; None where its rule does more."""
        decision = self.decision(part)
        if decision is None or decision.rule.derivative:
            return 1.0, 1.0
        return decision.rule.scales(decision.params)

    def untouched_but(self, *parts: str) -> bool:
        """Whether every node other than these parts keeps its plain derivative."""
        allowed = {self.parts[part] for part in parts if part in self.parts}
        decided = [self.plan.decisions[n] for n in self.fused.members if n in self.plan.decisions and n not in allowed]
        return all(decision.rule.derivative for decision in decided)


def choose(plan: Plan, fused: Fused) -> Callable[..., Any] | None:
    """A function of the fused operator's arguments that stands for the region under this plan, or None.

    Where no rule changed anything inside, that is the operator itself, bit for bit.
    """
    given = (plan.gives(node) for node in fused.members if node in plan.carrying)
    if not _trusted(fused) or Message.RELEVANCE in given:
        return None
    region = Region.of(plan, fused)
    if region.untouched_but():
        return PLAIN.get(packet(fused.target), fused.target)
    made = KERNELS.get(packet(fused.target))
    return made(region) if made is not None else None


def _trusted(fused: Fused) -> bool:
    """Whether a fused operator may run whole: torch's own backward of norms over a batch and of single instances is
    wrong where gradients lie channels-last (tests/kinds/test_kinds.py tries all operators).
    """
    target = packet(fused.target)
    return target is not INSTANCE_NORM and (target is not BATCH_NORM or fused.args[3] is not None)


def as_taken(
    fused: Fused, image: Callable[[fx.Node], Any], prepare: Callable[[Callable[..., Any], Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a fused operator in another graph, one of them prepared by what ``prepare`` is given for it."""
    args: list[Any] = list(fx.map_arg(fused.args, image))
    kwargs: dict[str, Any] = dict(fx.map_arg(dict(fused.kwargs), image))
    place, name, function = PREPARED.get(packet(fused.target), (len(args), "", None))
    if function is not None and place < len(args):
        args[place] = prepare(function, args[place])
    elif function is not None and name in kwargs:
        kwargs[name] = prepare(function, kwargs[name])
    return tuple(args), kwargs


# --- normalisations by fixed statistics ---------------------------------------------------------------------


def fixed_batch_norm(
    x: Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Tensor:
    """The batch norm of torch with the message of the map that it is, entry by entry: g_x = g weight / sqrt(var + eps).

    Torch's own backward on a CPU is wrong, in any precision, for one sample whose gradient lies channels-last.
    """
    y = F.batch_norm(x.detach(), mean, variance, weight, bias, False, momentum, eps)
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    return carry(y, x, scale.to(x.dtype).view(-1, *(1,) * (x.ndim - 2)))


PLAIN[BATCH_NORM] = fixed_batch_norm


# --- normalisations with a constant scale -------------------------------------------------------------------


class _ConstantScaleNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float, keep_mean: bool) -> Tensor:
        y, _, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(rstd, weight)
        ctx.axes, ctx.keep_mean = tuple(range(-len(shape), 0)), keep_mean
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rstd, weight = ctx.saved_tensors
        if not ctx.keep_mean:
            g = grads[0] if weight is None else grads[0] * weight
            return g * rstd.to(g.dtype), None, None, None, None, None
        # The true gradient subtracts the standardised x times a mean; where x stands at its mean that term is nothing.
        g, at_mean = grads[0].contiguous(), torch.zeros_like(grads[0], memory_format=torch.contiguous_format)
        shape = [g.shape[axis] for axis in ctx.axes]
        wanted = [True, False, False]
        g = LAYER_NORM_BACKWARD(g, at_mean, shape, torch.zeros_like(rstd), rstd, weight, None, wanted)[0]
        return g, None, None, None, None, None


@kernel(LAYER_NORM)
def _layer_norm(region: Region) -> Callable[..., Tensor] | None:
    keep_mean = region.scales("mean") == (1.0, 1.0)
    if not region.holds("scale") or not (keep_mean or region.holds("mean")) or not _only_inner(region):
        return None

    def constant_scale_layer_norm(
        x: Tensor,
        shape: list[int],
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        _cudnn: bool = True,
    ) -> Tensor:
        result: Any = _ConstantScaleNorm.apply(x, shape, weight, bias, eps, keep_mean)  # type: ignore[no-untyped-call]
        return result

    return constant_scale_layer_norm


def _only_inner(region: Region) -> bool:
    """Besides scale and mean, rules stand only on nodes that the constant scale makes irrelevant (the variance)."""
    scale = region.parts["scale"]
    feeding = {scale}
    for node in reversed(region.fused.members):
        if node.users and all(user in feeding for user in node.users):
            feeding.add(node)
    mean = region.parts.get("mean")
    decided = [n for n in region.fused.members if n in region.plan.decisions and n not in feeding and n is not mean]
    return all(region.plan.decisions[n].rule.plain for n in decided)


# --- attention with scaled messages or constant weights -----------------------------------------------------


def simplified_mask(mask: Tensor) -> tuple[Tensor | None, bool]:
    """The mask that attention needs, and whether it is the causal flag: a mask of ones is none.

    Export writes masks out that the model would not have built; the fused kernels are faster without them.
    """
    if mask.dtype != torch.bool or mask.is_meta or type(mask) is not Tensor or torch.compiler.is_compiling():
        return mask, False
    distinct = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride())]
    if bool(distinct.all()):
        return None, False
    rows, columns = mask.shape[-2:]
    causal = torch.ones(rows, columns, dtype=torch.bool, device=mask.device).tril()
    return (None, True) if rows == columns and bool((distinct == causal).all()) else (mask, False)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The fused attention of torch, its mask prepared by :func:`simplified_mask`."""
    mask, causal = attn_mask if isinstance(attn_mask, tuple) else (attn_mask, False)
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal or is_causal, scale=scale, enable_gqa=enable_gqa)


PLAIN[ATTENTION] = plain_attention
PREPARED[ATTENTION] = (3, "attn_mask", simplified_mask)


@kernel(ATTENTION)
def _attention(region: Region) -> Callable[..., Tensor] | None:
    if not {"scores", "weights", "output"} <= set(region.parts) or not region.untouched_but(
        "scores", "weights", "output"
    ):
        return None
    if region.holds("weights"):
        return constant_weights_attention
    found = region.scales("scores"), region.scales("output")
    if None in found or not region.untouched_but("scores", "output"):
        return None
    (q, k), (weights, v) = (scale for scale in found if scale is not None)
    return named(partial(_scaled_attention, q * weights, k * weights, v), "scaled_attention")


def named(function: Any, name: str) -> Callable[..., Tensor]:
    """Give a partial function the name that generated code shows."""
    function.__name__, function.__module__ = name, __name__
    return function


def _scaled_attention(
    share_q: float, share_k: float, share_v: float, q: Tensor, k: Tensor, v: Tensor, *a: Any, **o: Any
) -> Tensor:
    q, k, v = (scale_message(x, s) if s != 1 else x for x, s in ((q, share_q), (k, share_k), (v, share_v)))
    return plain_attention(q, k, v, *a, **o)


class _ConstantWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: float | None, gqa: bool
    ) -> Tensor:
        ctx.save_for_backward(q, k, mask)
        ctx.options = (causal, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, v.shape)
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, mask = ctx.saved_tensors
        causal, scale, shape = ctx.options
        mask = None if mask is None else mask.expand(*q.shape[:-1], k.shape[-2])
        g = grads[0]
        if q.ndim > 2 and q.shape[-3] != k.shape[-3]:  # several heads look at the same keys, which are not repeated
            groups = k.shape[-3], q.shape[-3] // k.shape[-3]
            q, g = q.unflatten(-3, groups), g.unflatten(-3, groups)
            mask = None if mask is None else mask.unflatten(-3, groups)
            k = k.unsqueeze(-3).expand(*q.shape[:-2], *k.shape[-2:])
        g_v = _weights_transposed(q, k, mask, causal, scale, g)
        g_v = g_v.sum(-3) if g_v.ndim > len(shape) else g_v
        return None, None, g_v.sum_to_size(shape), None, None, None, None


def _weights_transposed(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float, g: Tensor) -> Tensor:
    """softmax(scale q k^T + mask)^T g, by sample, head and some rows at a time where the matrix would be large."""
    if q.numel() // q.shape[-1] * k.shape[-2] <= _CHUNK:
        return _few_weights_transposed(q, k, mask, 0 if causal else None, scale, g)
    if q.ndim > 2:
        parts = zip(q, k, [None] * len(q) if mask is None else mask, g, strict=True)
        return torch.stack([_weights_transposed(q_, k_, m, causal, scale, g_) for q_, k_, m, g_ in parts])
    found = g.new_zeros(len(k), g.shape[-1])
    count = max(1, _CHUNK // len(k))
    for first in range(0, len(q), count):
        rows = slice(first, first + count)
        keys = min(first + count, len(k)) if causal else len(k)
        own = None if mask is None else mask[rows, :keys]
        found[:keys] += _few_weights_transposed(q[rows], k[:keys], own, first if causal else None, scale, g[rows])
    return found


def _few_weights_transposed(
    q: Tensor, k: Tensor, mask: Tensor | None, first: int | None, scale: float, g: Tensor
) -> Tensor:
    """The same at once; row i sees the keys up to ``first`` + i."""
    scores = torch.matmul(q * scale, k.mT)
    if first is not None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_(first)
        mask = seen if mask is None else mask & seen
    if mask is not None:
        scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return torch.matmul(softmax_of_some(scores, -1).mT, g)


def constant_weights_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention whose weights are constant: g_v = weights^T g, nothing flows to queries and keys, no weights
    are kept.
    """
    q, k = q.detach(), k.detach()
    mask, causal = attn_mask if isinstance(attn_mask, tuple) else (attn_mask, False)
    result: Any = _ConstantWeights.apply(q, k, v, mask, causal or is_causal, scale, enable_gqa)  # type: ignore[no-untyped-call]
    return result
