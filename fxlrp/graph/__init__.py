"""Reading captured graphs: what operators are, where nodes come from, which values are live."""

from fxlrp.graph import operator_table

__all__ = ["operator_table"]
