"""From a plan to a module whose ordinary backward pass carries relevance: :func:`rewrite` and its fused kernels."""

from fxlrp.rewrite.graph import Rewritten, rewrite

__all__ = ["Rewritten", "rewrite"]
