"""How much memory an explanation takes, told before anything is computed at that size.

In: a converted model and inputs, of which the sizes alone are read. Out: :class:`Memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxlrp.engine.conversion import Conversion, Prepared
from fxlrp.errors import InputError
from fxlrp.graph.handles import Elsewhere
from fxlrp.readout.passes import Task
from fxlrp.readout.rows import Mixed, scores_apart
from fxlrp.rewrite import Rewritten
from fxlrp.rewrite.head import Halves
from fxlrp.rewrite.memory import sizes_of


@dataclass(frozen=True)
class Memory:
    """Bytes that one explanation holds between its forward and its backward pass.

    Attributes:
        weights: the model's weights; of a model in half precision once more in float32, for the time of the call. Of
            those that are kept elsewhere and brought in, what the largest block takes.
        values: what the backward pass needs of every operation (``checkpoint=None``).
        in_blocks: what enters each block, and all that the largest block needs (``checkpoint="blocks"``).
        scores: scores over a large vocabulary [batch, positions, classes], which ``outputs=False`` does without; 0
            where they are few, and part of the values.

    What single operations need beside, for as long as they run, is not counted: the estimate was within a factor of
    1.5 of what was measured. Rulesets that read several passes hold one at a time.
    """

    weights: int
    values: int
    in_blocks: int
    scores: int

    def __str__(self) -> str:
        lines = {
            "weights": self.weights,
            "values, all kept": self.values,
            "values, checkpoint='blocks'": self.in_blocks,
            "scores, unless outputs=False": self.scores,
        }
        return "\n".join(f"{name:<30}{in_units(size):>10}" for name, size in lines.items() if size)


def in_units(size: int) -> str:
    """A number of bytes as people read it, in powers of 1,024."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def memory_of(lrp: Conversion, inputs: Any) -> Memory:
    """What explaining these inputs takes. The graph captured last serves if it stands for them, so that nothing runs.

    Raises :class:`InputError` where sizes follow from the values of the inputs.
    """
    given, known = lrp.given(inputs), lrp.last
    stands = known is not None and known.program.accepts(lrp.model, given)
    captured = known.folded(lrp.ruleset.fold) if known is not None and stands else lrp.captured(given)
    apart = scores_apart(lrp, captured)
    rewritten = lrp.rewritten(captured)[1] if apart is None else apart[0].body
    arguments = Task(lrp, Prepared(given, captured)).arguments(lrp, rewritten)
    kept = rewritten.kept(arguments)
    if kept is None:
        raise InputError(
            f"The sizes of what {type(lrp.model).__name__} computes follow from the values of its inputs, so that its "
            "memory cannot be told without running it."
        )
    held = (*lrp.model.parameters(), *lrp.model.buffers())
    weights = {each.data_ptr(): each for each in held if not each.is_meta}
    floats = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    copies = [a for a in floats if a.dtype.itemsize > lrp.dtype.itemsize]
    return Memory(
        weights=sum(each.nbytes for each in (*weights.values(), *copies)) + _brought_in(rewritten, arguments),
        values=kept.whole,
        in_blocks=kept.in_blocks,
        scores=0 if apart is None else _bytes_of_scores(*apart, arguments),
    )


def _brought_in(rewritten: Rewritten, arguments: Sequence[Any]) -> int:
    """The bytes of the weights kept elsewhere that one block brings in, the most of all blocks."""
    handles = {n: a for n, a in zip(rewritten.arguments, arguments, strict=True) if isinstance(a, Elsewhere)}
    sizes = {name: each.shape.numel() * each.dtype.itemsize for name, each in handles.items()}
    taken = ([sizes.get(str(n.target), 0) for n in node.all_input_nodes] for node in rewritten.blocks.graph.nodes)
    return max(map(sum, taken), default=0) if handles else 0


def _bytes_of_scores(halves: Halves, mixed: Mixed, arguments: Sequence[Any]) -> int:
    *_, (rows, *_) = sizes_of(halves.body.module, arguments)
    return int(rows.shape[:2].numel() * (mixed.classes or 0) * rows.dtype.itemsize)
