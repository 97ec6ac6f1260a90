"""Write a rule of your own and have every promise of it checked.

Change ``shrinking``: its body is an expression with the operation's value and a changed derivative. Declare what it
conserves and keeps, and write its formula once more, slowly, as the reference that it is compared with.
"""

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.rules import Cite, Conserves, Operation, rule
from fxlrp.rules.primitives import scale_message
from fxlrp.testing import check_rule


@rule(
    "activation",
    conserves=Conserves.WITH_LEAK,
    source=Cite("this example", "the identity rule, times a share"),
    leak=lambda op, y, g, x, *, share: y * g * (1 - share),
    leak_kind="shrunk",
)
def shrinking(op: Operation, x: Tensor, *, share: float = 0.9) -> Tensor:
    """R_x = share * R_y: relevance passes an activation, less a part of it.  x: any shape; share has no unit."""
    factor = op(x) / x  # R_x = x g_x, so g_x = (y / x) g_y hands all of R_y to x
    same_value = x * factor.detach()
    return scale_message(same_value - (same_value - op(x)).detach(), torch.tensor(share, dtype=x.dtype))


@shrinking.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *, share: float) -> Tensor:
    return share * relevance


print(check_rule(shrinking))

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).double().eval()
rules = fxlrp.ruleset("conservative").override(activation={"rule": "shrinking", "share": 0.8})
result = fxlrp.attribute(model, torch.randn(1, 6, dtype=torch.float64), ruleset=rules, target=1, ledger=True)
for kind, amount in result.ledger.by_kind().items():
    print(f"{kind:12}{float(amount[0]):+.4f}")
print(f"{'explained':12}{float(result.explained[0]):+.4f}")
