"""From a model and example inputs to a canonical graph of ATen operators.

:func:`capture` is the only entry: it exports (:mod:`.export`), rewrites to one spelling per operation
(:mod:`.canonical`, :mod:`.expansions`) and returns a frozen :class:`Program`.
"""

from fxlrp.capture.capturing import capture
from fxlrp.capture.program import Program

__all__ = ["Program", "capture"]
