"""Which inputs are explained, where a user names those that are wanted or leaves some out."""

from __future__ import annotations

from collections.abc import Sequence

from fxlrp.engine.conversion import Prepared
from fxlrp.errors import InputError, nearest


def selected(prepared: Prepared, only: str | Sequence[str] | None, exclude: str | Sequence[str]) -> Prepared:
    """``prepared`` inputs of which those in ``only`` (None: all) and not in ``exclude`` are explained.

    The others are additive constants. A name stands for a nested input as a whole as well as for its leaves (``a.0``).
    Raises :class:`InputError` for a name that is no input, and where nothing is left.
    """
    wanted, left_out = None if only is None else _names(only), _names(exclude)
    leaves = prepared.captured.program.input_leaves
    for name in (*(wanted or ()), *left_out):
        if not any(_fits(name, leaf) for leaf in leaves):
            raise InputError(f"There is no input '{name}' to choose or to leave out.{nearest(name, leaves)}")
    explained = {each.name for each in prepared.captured.structure.attributed}
    dropped = {
        leaf
        for leaf in explained
        if any(_fits(name, leaf) for name in left_out)
        or (wanted is not None and not any(_fits(name, leaf) for name in wanted))
    }
    if dropped == explained:
        raise InputError(
            "Nothing is left to explain: of the inputs, only "
            f"{', '.join(map(repr, sorted(explained)))} can carry relevance. Name one in inputs=, or leave fewer out."
        )
    return Prepared(prepared.given, prepared.captured.without(frozenset(dropped)))


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _fits(name: str, leaf: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}.")
