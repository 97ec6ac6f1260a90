"""Views of results, registered from above: a result is shown without knowing any report.

A view is a function of a result, registered with :func:`view` under a name and for the classes it can show. The
standard ones come with :mod:`fxlrp.report`, which is imported when a view is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from fxlrp.errors import InputError, nearest

Function = TypeVar("Function", bound=Callable[..., Any])

#: Views by name, then by the class of result that they show.
VIEWS: dict[str, dict[type, Callable[..., Any]]] = {}
#: Modules that register views when they are imported.
PROVIDERS: list[str] = []


def view(name: str, *kinds: type) -> Callable[[Function], Function]:
    """Register a function of a result (and options) as the view ``name`` of results of these classes.

    ``result.view(name, **options)`` calls it; a view called ``show``, ``to_html``, ``plot``, ``to_dataframe`` or
    ``to_notebook`` (a notebook's cell) takes the place of the standard one. It serves classes that derive from these as
    well. A later one replaces an earlier one of the same name and class.
    """

    def register(function: Function) -> Function:
        for kind in kinds:
            VIEWS.setdefault(name, {})[kind] = function
        return function

    return register


def provided_by(module: str) -> None:
    """Name a module that registers views; it is imported when a view is first asked for."""
    if module not in PROVIDERS:
        PROVIDERS.append(module)


def find_view(name: str, kind: type) -> Callable[..., Any]:
    """The view of this name for results of a class or of one that it derives from.

    Raises :class:`InputError` with the nearest name where there is none.
    """
    for module in PROVIDERS:
        import_module(module)
    for base in kind.__mro__:
        if base in VIEWS.get(name, {}):
            return VIEWS[name][base]
    known = [other for other, kinds in VIEWS.items() if not kinds.keys().isdisjoint(kind.__mro__)]
    raise InputError(f"{kind.__name__} has no view '{name}'.{nearest(name, known)}")


class Viewed:
    """The views that every result has. What they draw of it is registered by class with :func:`view`."""

    def view(self, name: str, **options: Any) -> Any:
        """What the view ``name`` makes of this result; ``options`` are the view's own. Raises :class:`InputError` for
        an unknown name.
        """
        return find_view(name, type(self))(self, **options)

    def show(self) -> None:
        """Print the result in the terminal: a heat map of the tokens, or a table of statistics of images and features;
        the ledger if there is one; for several rulesets how they compare.
        """
        self.view("show")

    def to_html(self, path: str | Path | None = None) -> str:
        """A self-contained HTML page, which needs no network; written to ``path`` if one is given. Raises
        :class:`fxlrp.errors.FileError`, an ``OSError``, where that cannot be written; an old page is then as it was.
        """
        page: str = self.view("to_html", path=path)
        return page

    def plot(self) -> Any:
        """A matplotlib figure of the main input's relevance, a row per sample. Raises
        :class:`fxlrp.MissingExtraError` without the extra 'plot'.
        """
        return self.view("plot")

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row per ruleset, sample, attributed input and position; relevance has the unit of
        the explained output. Raises :class:`fxlrp.MissingExtraError` without the extra 'data'.
        """
        return self.view("to_dataframe")

    def _repr_html_(self) -> str:
        page: str = self.view("to_notebook")
        return page
