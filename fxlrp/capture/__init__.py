"""From a model and example inputs to a canonical graph of ATen operators.

Entries are :func:`capture`, which exports (:mod:`.export`), rewrites to one spelling per operation
(:mod:`.canonical`, :mod:`.expansions`) and returns a frozen :class:`Program`, and :func:`agree`.
"""

from fxlrp.capture.agreement import agree
from fxlrp.capture.capturing import capture
from fxlrp.capture.program import Program

__all__ = ["Program", "agree", "capture"]
