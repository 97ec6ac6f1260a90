"""Rules that carry relevance itself: what they pass on is not proportional to x, so no gradient form exists."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from fxlrp.errors import RulesetError
from fxlrp.rules.choices import Stabiliser
from fxlrp.rules.dense import jacobian, matrix, shares
from fxlrp.rules.linear import LINEAR, affine, without
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import carry, positive_message, same_value
from fxlrp.rules.ranges import NotNegative, Range, Relation, Share, sums_to_one
from fxlrp.rules.rule import Cite, Conserves, Message, rule
from fxlrp.rules.shares import Shares, relevance_share_rule

MONTAVON = "Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor decomposition"


@rule(
    "activation",
    "softmax",
    "rectifier",
    "rounding",
    "scale",
    "shift",
    conserves=Conserves.EXACTLY,
    source=Cite("Bach et al. 2015; Chefer et al. 2021, code", "layers whose relevance is copied"),
    message=Message.RELEVANCE,
)
def pass_through(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """R_x = R_y, entry by entry, whatever the values.  x, y: any shape, the same for both (x is broadcast).

    Of a sum with constants (*shift*) the constants receive none.
    """
    y: Tensor = op(x, *rest)
    return same_value(y, x.expand_as(y))


@pass_through.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return relevance.sum_to_size(x.shape), *(torch.zeros_like(r) for r in rest if isinstance(r, Tensor))


# --- linear maps whose shares do not depend on x, or on its bounds -------------------------------------------


@relevance_share_rule(
    *LINEAR, source=Cite("Bach et al. 2015; Lapuschkin et al. 2019", "flat rule"), leak_kind="epsilon"
)
def flat(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: NotNegative = 1e-6,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
) -> Shares:
    """R_j = sum_i 1 / (n_i + epsilon) R_i over the outputs i that x_j enters, n_i = the number of inputs of output i.

    x: any shape the operation takes. Values, weights and biases play no part; what a padding adds to an output is no
    input. epsilon has no unit.
    """
    count = affine(op, carry(torch.ones_like(x), x, torch.ones_like(x)), torch.ones_like(weight), without(bias))
    return [(count, stabiliser(count, epsilon))]


@flat.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    return _from_contributions(matrix(op, x, torch.ones_like(weight)), relevance, x, options)


@relevance_share_rule(*LINEAR, source=Cite(MONTAVON, "w^2 rule"), leak_kind="epsilon")
def w_square(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: NotNegative = 1e-6,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
) -> Shares:
    """R_j = sum_i W_ij^2 / (sum_j' W_ij'^2 + epsilon) R_i.

    x: any shape the operation takes; its values and the bias play no part. epsilon has the unit of W^2.
    """
    squares = affine(op, carry(torch.ones_like(x), x, torch.ones_like(x)), weight.square(), without(bias))
    return [(squares, stabiliser(squares, epsilon))]


@w_square.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    return _from_contributions(matrix(op, x, weight.square()), relevance, x, options)


@relevance_share_rule(
    *LINEAR,
    source=Cite(MONTAVON, "z^B rule"),
    leak_kind="epsilon",
    relation=Relation("low <= high", lambda given: given["low"] <= given["high"], ("low", "high")),
)
def z_box(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    low: Annotated[float, Range(low=-math.inf)] = -math.inf,
    high: Annotated[float, Range(high=math.inf)] = math.inf,
    epsilon: NotNegative = 1e-6,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
) -> Shares:
    """R_j = sum_i z_ij / (sum_j' z_ij' + epsilon) R_i with z_ij = x_j W_ij - low W_ij+ - high W_ij-, signed epsilon.

    x: any shape the operation takes, samples along an axis. No bias. ``low`` and ``high`` (unit of x) are the
    bounds of the input domain; an infinite one stands for the least or the greatest entry of each sample.
    epsilon has the unit of z.
    """
    lower, upper = _bounds(x, low, high, op.samples)
    parts = (
        affine(op, carry(x, x, x), weight, without(bias)),
        affine(op, carry(lower, x, lower), weight.clamp(min=0), without(bias)),
        affine(op, carry(upper, x, upper), weight.clamp(max=0), without(bias)),
    )
    z = parts[0] - parts[1] - parts[2]
    return [(z, stabiliser(z, epsilon))]


@z_box.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    dense = matrix(op, x, weight)
    lower, upper = torch.empty_like(x), torch.empty_like(x)
    by_sample = (each.movedim(op.samples, 0) for each in (x, lower, upper))
    for sample, least, greatest in zip(*by_sample, strict=True):
        least.fill_(float(sample.min()) if math.isinf(options["low"]) else options["low"])
        greatest.fill_(float(sample.max()) if math.isinf(options["high"]) else options["high"])
    contributions = dense * x.flatten() - dense.clamp(min=0) * lower.flatten() - dense.clamp(max=0) * upper.flatten()
    return _from_contributions(contributions, relevance, x, options)


def _bounds(x: Tensor, low: float, high: float, samples: int) -> tuple[Tensor, Tensor]:
    """The bounds of the domain of x, in its shape."""
    values, axes = x.detach(), tuple(axis for axis in range(x.ndim) if axis != samples)
    lower = values.amin(axes, keepdim=True) if math.isinf(low) else torch.full_like(values, low)
    upper = values.amax(axes, keepdim=True) if math.isinf(high) else torch.full_like(values, high)
    return lower.expand_as(x), upper.expand_as(x)


def _from_contributions(contributions: Tensor, relevance: Tensor, x: Tensor, options: dict[str, Any]) -> Tensor:
    denominators = options["stabiliser"](contributions.sum(1), options["epsilon"])
    return shares(contributions, denominators, relevance.flatten()).reshape(x.shape)


# --- messages that are derivatives, with nothing multiplied --------------------------------------------------


@rule(
    "any",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Simonyan et al. 2014, Deep Inside Convolutional Networks", "the derivative itself as the map"),
    leak_kind="derivative",
    message=Message.RELEVANCE,
)
def vjp(op: Operation, *operands: Tensor) -> Tensor:
    """R_x = J^T R_y, the vector-Jacobian product of this operation alone; nothing is multiplied by x, of any shape.

    From R = 1 at an output on it is the plain gradient. Additive constants receive none.
    """
    result: Tensor = op(*_without_sources(op, operands))
    return result


@vjp.reference
def _(op: Operation, relevance: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
    results = []
    for i, x in enumerate(operands):
        if not isinstance(x, Tensor) or i in op.sources:
            results.append(torch.zeros_like(x) if isinstance(x, Tensor) else relevance.new_zeros(()))
            continue
        results.append(torch.einsum("ij,i->j", jacobian(op, operands, i), relevance.flatten()).reshape(x.shape))
    return tuple(results)


@rule(
    "rectifier",
    "activation",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Springenberg et al. 2015, Striving for Simplicity", "guided backpropagation, sec. 3.4"),
    leak_kind="negative message",
    message=Message.RELEVANCE,
)
def guided(op: Operation, x: Tensor) -> Tensor:
    """R_x = f'(x) max(R_y, 0): for ReLU the message passes where x > 0 and it is positive.  x: any shape."""
    return positive_message(vjp.surrogate(op, x))


@guided.reference
def _(op: Operation, relevance: Tensor, x: Tensor) -> Any:
    return vjp.references[0](op, relevance * (relevance > 0), x)


@rule(
    "rectifier",
    "activation",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks", "sec. 2.1"),
    leak_kind="negative message",
    message=Message.RELEVANCE,
)
def deconvnet(op: Operation, x: Tensor) -> Tensor:
    """R_x = max(R_y, 0): a rectifier is applied to the message, whatever x was.  x: any shape."""
    y: Tensor = op(x)
    return positive_message(carry(y, x, torch.ones_like(y)))


@deconvnet.reference
def _(op: Operation, relevance: Tensor, x: Tensor) -> Tensor:
    return relevance * (relevance > 0)


def _without_sources(op: Operation, operands: tuple[Any, ...]) -> list[Any]:
    return [x.detach() if i in op.sources and isinstance(x, Tensor) else x for i, x in enumerate(operands)]


class _JacobianShares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Operation, blocks: int, weights: tuple[float, float, float], *operands: Tensor) -> Tensor:
        ctx.save_for_backward(*operands)
        ctx.options = op, blocks, weights
        y: Tensor = op(*operands)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        op, blocks, (alpha, beta, epsilon) = ctx.options
        live = [x.detach().requires_grad_() if op.live[i] else x for i, x in enumerate(ctx.saved_tensors)]
        leaves = [x for i, x in enumerate(live) if op.live[i]]
        with torch.enable_grad():
            y = op(*live)
        arrived = grads[0].flatten(blocks) if blocks < y.ndim else grads[0][..., None]
        unit = torch.zeros_like(arrived)
        sums = [[torch.zeros_like(x) for _ in range(4)] for x in leaves]
        for entry in range(arrived.shape[-1]):
            unit.zero_()[..., entry] = 1
            rows = torch.autograd.grad(y, leaves, unit.view_as(y), retain_graph=True)
            for x, row, parts in zip(leaves, rows, sums, strict=True):
                message = arrived[..., entry].reshape(*y.shape[:blocks], *([1] * (x.ndim - blocks)))
                for index, z in enumerate(((row * x).clamp(min=0), (row * x).clamp(max=0))):
                    parts[2 * index] += z
                    parts[2 * index + 1] += message * z
        received = iter(
            alpha * up_r / (up + epsilon) + beta * down_r / (down - epsilon) for up, up_r, down, down_r in sums
        )
        return None, None, None, *(next(received).detach() if alive else None for alive in op.live)


@rule(
    "general",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Wu & Ong 2020, code", "util/lrp.py, after Voita et al. 2019"),
    leak_kind="shares by column",
    message=Message.RELEVANCE,
    among_outputs=True,
    relation=sums_to_one("alpha", "beta"),
)
def jacobian_shares(
    op: Operation,
    *operands: Tensor,
    alpha: Share = 0.5,
    beta: Share = 0.5,
    epsilon: NotNegative = 1e-7,
    matrices: bool = False,
) -> Tensor:
    """R_j = sum_i (alpha z_ij+ / (sum_k z_kj+ + epsilon) + beta z_ij- / (sum_k z_kj- - epsilon)) R_i with z_ij = x_j
    dy_i / dx_j.

    Contributions are compared among the outputs that x_j reaches, not among the inputs of an output, so nothing is
    conserved by itself. The Jacobian is that of whole tensors: one backward pass for every entry of y. With
    ``matrices`` the operation maps matrices [..., rows, columns] one by one, as attention does, and all are done at
    once. Operands: any shapes, then [..., rows, columns] with the axes in front of y; epsilon in the unit of z.
    """
    y_shape = op(*(x.detach() for x in operands)).shape
    blocks = max(len(y_shape) - 2, 0) if matrices else 0
    for x in operands:
        if x.shape[:blocks] != y_shape[:blocks]:
            raise RulesetError(
                f"Rule 'jacobian_shares' with matrices: true takes operands with the axes in front of its value, "
                f"{list(y_shape[:blocks])}; one is {list(x.shape)}. Use matrices: false."
            )
    result: Tensor = _JacobianShares.apply(op, blocks, (alpha, beta, epsilon), *operands)  # type: ignore[no-untyped-call]
    return result


@jacobian_shares.reference
def _(op: Operation, relevance: Tensor, x: Tensor, **options: Any) -> Tensor:
    z = jacobian(op, [x], 0) * x.flatten()
    share = torch.zeros_like(z)
    for part, sign in ((options["alpha"], 1), (options["beta"], -1)):
        chosen = z * (sign * z > 0)
        share += part * chosen / (chosen.sum(0) + sign * options["epsilon"])
    return torch.einsum("ij,i->j", share, relevance.flatten()).reshape(x.shape)
