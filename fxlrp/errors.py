"""Every error that a user can cause, as subclasses of :class:`FxlrpError`.

Each message says what was wrong, where (module path, source line or YAML line) and what to do about it.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable
from difflib import get_close_matches

#: Characters that a terminal obeys rather than shows (but for line feed and tab), that turn the direction of what
#: follows, or that no encoding has.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text of somebody else's as a terminal may show it: each character that it would obey becomes a picture."""
    return UNSEEN.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


class FxlrpError(Exception):
    """Base of all errors raised by fxlrp for reasons a user can act on."""

    def __str__(self) -> str:
        return visible(super().__str__())


class TrainingModeError(FxlrpError):
    """The model (or a part of it) is in training mode, so its outputs are random."""


class CaptureError(FxlrpError):
    """The model could not be exported to a graph."""


class VersionError(FxlrpError):
    """The installed version of torch or transformers lacks something that fxlrp rests on."""


class InputError(FxlrpError):
    """The inputs do not fit the model: wrong names, NaN, mixed devices, nothing to explain."""


class ReadingError(InputError):
    """What a ruleset reads is not there in this model: no attention, rows of attention that are no tokens.

    A comparison leaves such a ruleset out and says so.
    """


class TargetError(FxlrpError):
    """The target is out of range, of the wrong shape, or not a scalar per sample."""


class RulesetError(FxlrpError):
    """A ruleset, or one of its rules, is unknown or malformed."""


class ParameterError(RulesetError):
    """A value of a rule's parameter is of the wrong type, or out of its range."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class PatternError(FxlrpError):
    """The code of a pattern cannot be looked for as it is written."""


class UncoveredOperatorError(FxlrpError):
    """A live, non-homogeneous operator that no rule of the ruleset covers."""


class FileError(FxlrpError, OSError):
    """A file cannot be written: the disk is full, a folder is missing, the name is none."""


class NotFiniteError(FxlrpError):
    """A result holds NaN or an infinity; the message names the operation where it first appears."""


class MissingExtraError(FxlrpError):
    """An optional package is needed for this feature."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the optional package '{package}', which is not installed. "
            f"Install it with: pip install 'fxlrp[{extra}]'"
        )


class RetraceWarning(UserWarning):
    """A graph stands for inputs of one size, or for one input: others are traced anew, which takes its time."""


class SharedRelevanceWarning(UserWarning):
    """Relevance belongs to several entries of an input together, and was shared among them evenly."""


class RelevanceWarning(UserWarning):
    """Relevance that means little: all zero beside a value that is not, blown up, or not adding up."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the line of the user's own code, however deep it arises."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _OURS:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(visible(text), category, stacklevel=depth + 1)


#: Whose frames lie between a user's line and a warning: our own, and wrappers around them.
_OURS = ("fxlrp", "torch", "contextlib")


#: The longest text of somebody else's that a message repeats.
QUOTED = 200


def shortened(text: object) -> str:
    """A text as a message can repeat it: over-long ones end in an ellipsis."""
    whole = str(text)
    return whole if len(whole) <= QUOTED else f"{whole[:QUOTED]}…"


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like ``name``, if any is."""
    return next(iter(get_close_matches(name, sorted(valid), n=1, cutoff=0.5)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A closing sentence that suggests the nearest valid name and lists them all."""
    names = sorted(valid)
    close = closest(name, names)
    hint = f" Did you mean '{close}'?" if close else ""
    return f"{hint} Valid names: {', '.join(names)}."
