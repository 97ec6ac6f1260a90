"""A converted model by its fused kernels, and by the definitions of the rules that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

import fxlrp
from fxlrp.readout.passes import Carried
from fxlrp.rewrite import rewrite


def by_both(lrp: fxlrp.ConvertedModel, inputs: dict[str, Tensor]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Outputs and input relevance from the kernels, and from their definitions."""
    captured = lrp.conversion.captured(inputs)
    results = []
    for fused in (True, False):
        rewritten = rewrite(lrp.plan, fused=fused)
        fresh = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        outputs, values, _ = rewritten.module(*lrp.conversion.arguments(captured.program, rewritten, inputs, fresh))
        explained = outputs[0][:, 1].sum()
        grads = torch.autograd.grad(explained, values, allow_unused=True) if explained.requires_grad else [None] * 2
        relevance = {
            each.name: torch.zeros_like(x) if grad is None else Carried(x, grad, lrp.plan.message).relevance.detach()
            for each, x, grad in zip(captured.structure.attributed, values, grads, strict=False)
        }
        results.append((outputs[0].detach(), relevance))
    return results
