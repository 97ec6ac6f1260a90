"""Tokens as a reader wants them: in go a tokenizer's raw pieces, out come readable texts and which of them
belong together.

Three conventions are understood: WordPiece (``##ing`` continues a word), SentencePiece (``▁word`` begins one)
and byte-level BPE (``Ġword`` begins one, and every byte is spelled by a printable stand-in).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fxlrp.errors import visible

SPACE_SPM = "\N{LOWER ONE EIGHTH BLOCK}"
SPACE_BYTES = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
NEWLINE_BYTES = "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"
VISIBLE_SPACE = "\N{OPEN BOX}"
VISIBLE_NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


@dataclass(frozen=True)
class Piece:
    """One token to show: ``text`` to read, ``raw`` as the tokenizer spells it, ``glued`` to the one before
    it.
    """

    text: str
    raw: str
    glued: bool


@cache
def _byte_decoder() -> Any:
    from tokenizers.decoders import ByteLevel

    return ByteLevel()


def _is_special(token: str) -> bool:
    return len(token) > 2 and (token[0], token[-1]) in {("[", "]"), ("<", ">")}


def _visible(text: str) -> str:
    """Spell out white space, which would otherwise be an empty box, and what a terminal or a page would obey."""
    text = visible(text.replace("\n", VISIBLE_NEWLINE).replace("\t", "\N{RIGHTWARDS ARROW TO BAR}"))
    return text if text.strip() else VISIBLE_SPACE * max(1, len(text))


def readable(tokens: Sequence[str]) -> tuple[Piece, ...]:
    """Return one :class:`Piece` per token.

    >>> [(p.text, p.glued) for p in readable(["[CLS]", "un", "##forget", "##table"])]
    [('[CLS]', False), ('un', False), ('forget', True), ('table', True)]
    """
    byte_level = any(token.startswith((SPACE_BYTES, NEWLINE_BYTES)) for token in tokens)
    marks_words = byte_level or any(token.startswith(SPACE_SPM) for token in tokens)
    pieces: list[Piece] = []
    after_special = True
    for raw in tokens:
        special = _is_special(raw)
        begins_word = after_special or special
        text = raw
        if marks_words and not special:
            text = _byte_decoder().decode([raw]) if byte_level else raw.replace(SPACE_SPM, " ")
            begins_word = begins_word or text[:1].isspace()
            text = text.removeprefix(" ") if text.strip() else text
        elif raw.startswith("##") and len(raw) > 2:
            text = raw[2:]
            begins_word = False
        else:
            begins_word = True
        pieces.append(Piece(_visible(text), raw, glued=not begins_word))
        after_special = special
    return tuple(pieces)
