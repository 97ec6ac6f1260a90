"""Where in a model an entry of a ruleset applies: globs over modules, and the first or last operation of a class."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field


class Where(BaseModel):
    """A restriction to modules: ``module`` is a glob over module paths, ``class`` one over class names.

    ``first`` (``last``): only operations that no other of the class or part of a pattern that the entry matches comes
    before on a way from an input (after on a way to an output) that relevance takes. Linear layers and convolutions
    count as one class. Where ways branch, as in a model with two inputs, there may be several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    module: str | None = None
    class_: str | None = Field(default=None, alias="class")
    first: bool = False
    last: bool = False

    def accepts(self, match: str, stack: Sequence[tuple[str, str]], ends: tuple[Set[str], Set[str]]) -> bool:
        """Whether any module that encloses the node fits, and, if asked, it is a first (last) ``match``.

        ``ends`` are the labels of which the node is a first, and a last one.
        """
        if (self.first and match not in ends[0]) or (self.last and match not in ends[1]):
            return False
        paths = [path for path, _ in stack]
        kinds = [kind for _, kind in stack]
        return (self.module is None or any(glob(self.module).fullmatch(p) for p in paths)) and (
            self.class_ is None or any(glob(self.class_).fullmatch(k) for k in kinds)
        )


@lru_cache(maxsize=4096)
def glob(pattern: str) -> re.Pattern[str]:
    """A module-path glob: ``*`` is one segment (any number at the very front), ``**`` any number of segments."""
    front = pattern.startswith("*.")
    body = re.escape(pattern[2:] if front else pattern)
    body = body.replace(r"\*\*", "\0").replace(r"\*", "[^.]*").replace("\0", ".*").replace(r"\?", "[^.]")
    return re.compile((r"(?:.*\.)?" if front else "") + body)
