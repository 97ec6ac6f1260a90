"""Tokens become readable: three tokenizer conventions, specials, white space."""

import pytest

from fxlrp.report.tokens import readable


def words(tokens: list[str]) -> str:
    """The pieces as a reader sees them: `|` between tokens of one word, a space between words."""
    return "".join(("|" if piece.glued else " ") + piece.text for piece in readable(tokens)).strip()


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["[CLS]", "un", "##forget", "##table", "film", "[SEP]"], "[CLS] un|forget|table film [SEP]"),
        (["<s>", "ĠParis", "ian", "Ġnight", "s", "</s>"], "<s> Paris|ian night|s </s>"),
        (["▁Par", "is", "▁is", "<0x0A>"], "Par|is is <0x0A>"),
        (["CafÃ©", "Ġau", "Ġlait"], "Café au lait"),
        (["Ċ", "Ġ", "Ġyes"], "↵ ␣ yes"),
        (["##"], "##"),
        ([""], "␣"),
        ([], ""),
    ],
)
def test_readable(tokens: list[str], shown: str) -> None:
    assert words(tokens) == shown


def test_raw_spelling_is_kept() -> None:
    tokens = ["Ġa", "##b", "▁c"]
    assert [piece.raw for piece in readable(tokens)] == tokens
