"""Propagation rules: a table from names to small functions, each with its mathematics
beside it.
"""

from fxlrp.rules import elementary, gamma, linear, product, relevance, rescale, spread
from fxlrp.rules.operation import Operation, take_apart
from fxlrp.rules.post import Post
from fxlrp.rules.rule import RULES, Cite, Conserves, Rule, find_rule, rule

__all__ = [
    "RULES",
    "Cite",
    "Conserves",
    "Operation",
    "Post",
    "Rule",
    "elementary",
    "find_rule",
    "gamma",
    "linear",
    "product",
    "relevance",
    "rescale",
    "rule",
    "spread",
    "take_apart",
]
