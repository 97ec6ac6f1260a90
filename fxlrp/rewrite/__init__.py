"""From a plan to a module whose ordinary backward pass carries relevance: :func:`rewrite` and its fused kernels."""

from fxlrp.rewrite.graph import Rewritten, rewrite
from fxlrp.rewrite.text import graph_text

__all__ = ["Rewritten", "graph_text", "rewrite"]
