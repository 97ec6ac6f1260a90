"""Where the embedding of token ids ends: which module adds positions and types to a look-up before any block."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxlrp.graph.nodes import module_stack


def embedding_module(lookup: fx.Node, blocks: Iterable[fx.Node]) -> str | None:
    """The path of the outermost module around ``lookup`` that holds none of ``blocks`` (attention, skip connections).

    None where the look-up stands in no such module, or nothing is a block.
    """
    beyond = {path for node in blocks for path, _ in module_stack(node)} | {""}
    enclosing = (path for path, _ in module_stack(lookup) if path not in beyond)
    return next(enclosing, None) if len(beyond) > 1 else None
