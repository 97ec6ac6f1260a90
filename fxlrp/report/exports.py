"""Reports as files: the suffix of a name says what is written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxlrp.errors import UNSEEN, InputError
from fxlrp.evaluate.comparison import Comparison
from fxlrp.report import dataframe, generation, views
from fxlrp.results.files import write_whole
from fxlrp.results.generation import GenerationAttribution

Result = Comparison | GenerationAttribution


def as_json(value: Any) -> str:
    """Plain values as JSON that a terminal shows and does not obey."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_plain(result: Result) -> dict[str, Any]:
    """Every number that a view shows, as plain values."""
    if isinstance(result, Comparison):
        return views.comparison_as_plain(result)
    return {"generation": generation.generation_as_plain(result)}


def _page(result: Result, title: str) -> str:
    return (
        views.to_html(result, None, title)
        if isinstance(result, Comparison)
        else generation.generation_html(result, None, title)
    )


def _plain(result: Result, title: str) -> str:
    return as_json({"title": title, **as_plain(result)}) + "\n"


def _table(result: Result, title: str) -> str:
    if isinstance(result, Comparison):
        return _csv(dataframe.COLUMNS, dataframe.rows(tuple(result.attributions.values())))
    return _csv(generation.COLUMNS, generation.rows(result))


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows((head, *rows))
    return file.getvalue()


#: What writes a report, by the suffix of its name: a page, all numbers, or a table with a row for each token.
WRITERS: Mapping[str, Callable[[Result, str], str]] = {
    ".html": _page,
    ".htm": _page,
    ".json": _plain,
    ".csv": _table,
}


def writer_of(path: Path) -> Callable[[Result, str], str]:
    """What writes a report of this name; one without suffix is a page. Raises :class:`InputError` for any other."""
    if not path.suffix:
        return _page
    found = WRITERS.get(path.suffix.lower())
    if found is None:
        raise InputError(f"No report is written as '{path.suffix}' ('{path}'): name it {', '.join(WRITERS)}.")
    return found


def export(result: Result, path: Path, title: str) -> None:
    """Write a report as its name says. Raises :class:`InputError` for a name that says nothing known, and
    :class:`fxlrp.errors.FileError` where it cannot be written.
    """
    write_whole(path, writer_of(path)(result, title))
