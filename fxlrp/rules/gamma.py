"""The gamma rule for linear maps in its published forms: zennit's generalised one, Ali et al.'s, captum's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.choices import GammaForm, away_from_zero
from fxlrp.rules.dense import matrix, shares
from fxlrp.rules.linear import LINEAR, affine, negative, positive, without
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import ratio, scale_message
from fxlrp.rules.ranges import NotNegative, Relation
from fxlrp.rules.rule import Cite, Conserves, rule
from fxlrp.rules.shares import Shares, share_rule

MONTAVON = "Montavon et al. 2019, Layer-Wise Relevance Propagation: An Overview"


def _gamma_leak(
    op: Operation, y: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """sum of y g less the numerators that the rule passes on: what its two stabilisers keep."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        constant = None if bias is None else bias.detach().requires_grad_()
        value = gamma.surrogate(op, leaf, weight.detach(), constant, **options)
    leaves = [leaf] if constant is None else [leaf, constant]
    grads = torch.autograd.grad(value, leaves, g, create_graph=g.requires_grad)
    kept = (y * g).sum() - (x * grads[0]).sum()
    return kept if bias is None else kept - (bias * grads[1]).sum()


#: The pole of z / z' has a residue proportional to gamma: on random networks with inputs of both signs the largest |R|
#: is 5e2 times the explained value at 0.5, 2e4 times at 1, 9e6 times at 10. Next to it rounding is large whatever gamma
#: is: of 32 texts each on a BERT and a Llama, relevance in float32 is off from that in float64 by at most 3 % at 0.01,
#: but for one or two texts by 7 to 70 % at 0.02 to 0.25 though no number is large (3e-5 in the form 'generalised').
CONDITIONED = Relation(
    "gamma of at most 0.01 in the form 'ali', whose denominators vanish for some inputs of both signs (those of the "
    "form 'generalised' do not: take that one, or explain in float64, as float32 may be off by half),",
    lambda given: given["form"] is not GammaForm.ALI or given["gamma"] <= 0.01,
    ("gamma", "form"),
    advised=True,
)


@share_rule(
    *LINEAR,
    source=Cite(MONTAVON, "eq. 10.10; generalised form of zennit 0.5"),
    leak=_gamma_leak,
    leak_kind="epsilon",
    relation=CONDITIONED,
)
def gamma(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gamma: NotNegative = 0.25,
    epsilon: NotNegative = 1e-6,
    form: GammaForm = GammaForm.GENERALISED,
    scale_bias: bool = True,
    bridge: NotNegative = 1e-10,
) -> Shares:
    """Positive contributions are favoured by 1 + gamma.  x: any shape the operation takes.

    ``generalised`` (any sign of x): for z_i > 0, R_j = (x_j+ (W + gamma W+)_ij + x_j- (W + gamma W-)_ij) R_i /
    d_i with d_i the sum of the numerators and of the bias b + gamma b+; for z_i < 0 the roles of W+ and W- (and
    b+, b-) swap. ``ali`` (x unsplit; Ali et al. 2022): g_x = (W + gamma W+)^T (z / z' g) with z' = (W + gamma
    W+) x + b + gamma b+. ``scale_bias=False`` leaves b as it is (captum). epsilon stabilises d by sign; it has
    the unit of z. ``bridge`` (unit of x; generalised form only) is the stabiliser of the division by x with
    which zennit's hooks return from R to a gradient: R_x is multiplied by x / (x + bridge sign x). At 0 there
    is none, as neither form needs one. In the form ``ali`` z' may vanish where z does not, for x of both signs: above
    a gamma of 0.01 explain in float64, where relevance may still be large.
    """
    bias_gamma = gamma if scale_bias else 0.0
    up = weight + gamma * weight.clamp(min=0)
    raised = None if bias is None else bias + bias_gamma * positive(bias)
    if form is GammaForm.ALI:
        total = affine(op, x, up, raised)
        return [(total, away_from_zero(total, epsilon))]
    z = affine(op, x, weight, bias)
    x = scale_message(x, ratio(x, away_from_zero(x, bridge)).detach()) if bridge else x
    down = weight + gamma * weight.clamp(max=0)
    lowered = None if bias is None else bias + bias_gamma * negative(bias)
    above = affine(op, positive(x), up, raised) + affine(op, negative(x), down, without(bias))
    below = affine(op, positive(x), down, lowered) + affine(op, negative(x), up, without(bias))
    return [
        (above * (z > 0), away_from_zero(above, epsilon)),
        (below * (z < 0), away_from_zero(below, epsilon)),
    ]


@gamma.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    z = affine(op, x, weight, bias).flatten()
    dense, flat = matrix(op, x, weight), x.flatten()
    constant = z - dense @ flat
    bias_gamma = options["gamma"] if options["scale_bias"] else 0.0
    up, down = dense + options["gamma"] * dense.clamp(min=0), dense + options["gamma"] * dense.clamp(max=0)
    result = torch.zeros_like(flat)
    for i in range(len(z)):
        if options["form"] is GammaForm.ALI:
            row, offset = up[i] * flat, constant[i] + bias_gamma * constant[i].clamp(min=0)
        elif z[i] > 0:
            row, offset = (
                torch.where(flat > 0, up[i], down[i]) * flat,
                constant[i] + bias_gamma * constant[i].clamp(min=0),
            )
        else:
            row, offset = (
                torch.where(flat > 0, down[i], up[i]) * flat,
                constant[i] + bias_gamma * constant[i].clamp(max=0),
            )
        result += row * relevance.flatten()[i] / away_from_zero(row.sum() + offset, options["epsilon"])
    if options["form"] is GammaForm.GENERALISED and options["bridge"]:
        result = result * flat / away_from_zero(flat, options["bridge"])
    return result.reshape(x.shape)


@rule(
    *LINEAR,
    conserves=Conserves.EXACTLY,
    source=Cite("Ali et al. 2022, code", "xai_transformer.py, pforward of the attention output"),
    keeps_value=False,
)
def ali_forward_gamma(
    op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gamma: NotNegative = 0.01
) -> Tensor:
    """A quirk, never a default: y = (W + gamma W+) x + b + gamma b+ replaces the layer, so the outputs change.

    The authors' gamma experiments evaluate the modified layer itself in the attention's output projection; this is
    here to reproduce their numbers. x: any shape; R_x is that of the plain gradient through the modified layer.
    """
    raised = None if bias is None else bias + gamma * positive(bias)
    return affine(op, x, weight + gamma * weight.clamp(min=0), raised)


@ali_forward_gamma.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gamma: float
) -> Tensor:
    dense, flat = matrix(op, x, weight), x.flatten()
    constant = affine(op, x, weight, bias).flatten() - dense @ flat
    contributions = (dense + gamma * dense.clamp(min=0)) * flat
    return shares(
        contributions, contributions.sum(1) + constant + gamma * constant.clamp(min=0), relevance.flatten()
    ).reshape(x.shape)
