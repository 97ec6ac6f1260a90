"""What a ruleset says of the publication behind it: whom to cite, and where paper and code differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fxlrp.errors import visible


class Citation(BaseModel):
    """A publication."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    authors: str
    year: int
    title: str
    url: str | None = None

    def __str__(self) -> str:
        return visible(f"{self.authors} ({self.year}). {self.title}.")


class Switch(BaseModel):
    """A point on which a paper and its authors' code differ: what each does, and how to get the other of the two.

    ``default`` says which of them the ruleset follows as it stands, ``override`` holds the keywords of
    :meth:`fxlrp.spec.ruleset.Ruleset.override` that select the other; :meth:`fxlrp.spec.ruleset.Ruleset.switch` applies
    them by ``name``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    paper: str
    code: str
    default: Literal["paper", "code"] = "code"
    override: dict[str, Any] = Field(min_length=1)


@dataclass(frozen=True)
class RulesetInfo:
    """What produced an attribution: name, version and hash of the ruleset, and whom to cite."""

    name: str
    version: str
    hash: str
    title: str = ""
    citation: str = ""
    url: str | None = None
