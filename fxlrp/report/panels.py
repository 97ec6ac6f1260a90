"""What there is to show: in goes an :class:`~fxlrp.results.attribution.Attribution`, out come plain frozen values, one
per sample.

Every view (HTML, terminal, matplotlib, JSON) draws these values, so what a number means is decided here once:
padded positions are left out, hidden dimensions and colour channels are summed, and the ledger is grouped by
kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch.nn.functional import interpolate

from fxlrp.engine.ledger import Ledger
from fxlrp.report.pixels import LARGEST_SIDE
from fxlrp.report.tokens import Piece, readable
from fxlrp.results.attribution import Attribution

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

INPUT_KIND = "input"


class Layout(Enum):
    """What the positions of an attributed input are, which decides how it is drawn."""

    TOKENS = "tokens"
    FEATURES = "features"
    IMAGE = "image"


@dataclass(frozen=True)
class Panel:
    """Relevance of one attributed input of one sample.

    ``values`` is ``[positions]`` for tokens and features and ``[height, width]`` for an image, in pixels or in
    patches; ``pieces`` names the positions (empty for an image), ``places`` are their numbers before padding was
    left out, by which panels are compared. ``smooth`` is the map to draw for patches, ``backdrop`` the image itself in
    grey (0 to 1), of the size of what is drawn.
    """

    name: str
    layout: Layout
    values: Array
    pieces: tuple[Piece, ...]
    places: tuple[int, ...] = ()
    smooth: Array | None = None
    backdrop: Array | None = None

    @property
    def picture(self) -> Array:
        """What is drawn of an image: patches enlarged, pixels as they are."""
        return self.values if self.smooth is None else self.smooth

    @property
    def unit(self) -> str:
        """What the entries of an image are."""
        return "pixels" if self.smooth is None else "patches"

    def at(self, place: int) -> float | None:
        """The relevance of the token at this place of the input; None where this panel leaves it out."""
        return self._by_place.get(place)

    @cached_property
    def _by_place(self) -> dict[int, float]:
        return dict(zip(self.places, map(float, self.values), strict=True))

    @property
    def scale(self) -> float:
        """The largest ``|R|``, which gets the full colour; zero when there is nothing to see."""
        return float(np.abs(self.values).max(initial=0.0))

    @property
    def total(self) -> float:
        """The sum of relevance over the positions shown."""
        return float(self.values.sum())


def union(panels: Sequence[Panel]) -> list[tuple[int, Piece]]:
    """Place and text of every position that some panel shows, in the order of the input."""
    found = {place: piece for panel in panels for place, piece in zip(panel.places, panel.pieces, strict=True)}
    return sorted(found.items())


@dataclass(frozen=True)
class LedgerGroup:
    """All ledger entries of one kind: their sum and, largest first, the sources it is made of."""

    kind: str
    leak: bool
    amount: float
    sources: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LedgerSheet:
    """The ledger of one sample: ``explained = sum of groups + gap``; inputs first, then constants, then
    leaks.
    """

    groups: tuple[LedgerGroup, ...]
    explained: float
    total: float
    gap: float

    @property
    def magnitude(self) -> float:
        """The largest amount or total, whose decimals all amounts of the ledger are printed with."""
        return max([abs(self.explained), abs(self.total), *(abs(group.amount) for group in self.groups)])

    def part(self, *, leak: bool, inputs: bool = False) -> float:
        """Return the sum of the groups that are inputs, or leaks, or (neither) additive constants."""
        return sum(
            group.amount
            for group in self.groups
            if group.leak == leak and (group.kind == INPUT_KIND) == (inputs and not leak)
        )


@dataclass(frozen=True)
class LayerMap:
    """Relevance at module outputs: ``values[layer, token]``; ``prefix`` is what all the layers' names begin
    with.
    """

    prefix: str
    names: tuple[str, ...]
    pieces: tuple[Piece, ...]
    values: Array

    @property
    def scales(self) -> tuple[float, ...]:
        """The largest ``|R|`` of each layer.

        Every layer gets a scale of its own: layers share one total, but where one token holds it
        all (as [CLS] does below a classifier) its colour would drown the layers that spread it.
        """
        return tuple(float(np.abs(row).max(initial=0.0)) for row in self.values)

    @property
    def relative(self) -> Array:
        """``values`` divided by their layer's scale, zero where a layer has none."""
        scales = np.array(self.scales)[:, None]
        return np.divide(self.values, scales, out=np.zeros_like(self.values), where=scales != 0)


@dataclass(frozen=True)
class SampleView:
    """Everything there is to show about one sample under one ruleset."""

    index: int
    ruleset: str
    label: str
    explained: float
    panels: tuple[Panel, ...]
    ledger: LedgerSheet | None
    layers: LayerMap | None


def digest(attribution: Attribution) -> tuple[SampleView, ...]:
    """Return one :class:`SampleView` per sample of the batch, in the batch's order."""
    return tuple(_sample(attribution, index) for index in range(attribution.explained.shape[0]))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array


def _sample(attribution: Attribution, index: int) -> SampleView:
    return SampleView(
        index=index,
        ruleset=attribution.ruleset.name,
        label=attribution.label[index],
        explained=float(attribution.explained[index]),
        panels=_panels(attribution, index),
        ledger=None if attribution.ledger is None else _sheet(attribution.ledger, index),
        layers=_layer_map(attribution, index),
    )


def _main_input(attribution: Attribution) -> str:
    """The name of the input that ``attribution.relevance`` is about."""
    for name, relevance in attribution.inputs.items():
        if relevance.shape == attribution.relevance.shape and relevance.equal(attribution.relevance):
            return name
    return next(iter(attribution.inputs), "input")


def _panels(attribution: Attribution, index: int) -> tuple[Panel, ...]:
    main = _main_input(attribution)
    others = {name: relevance for name, relevance in attribution.inputs.items() if name != main}
    sequential = _is_sequence(attribution)
    if attribution.grid is not None:
        first = _image(main, attribution, attribution.grid, index)
    else:
        tokens, mask = _positions(attribution, index)
        relevance = _array(attribution.relevance[index])
        first = _panel(main, relevance, sequential, tokens, mask)
        if first.layout is Layout.IMAGE:
            first = replace(first, backdrop=_grey(attribution, index, first.values.shape))
    # Only the main input has token texts and a mask of its own; the others are shown by position.
    return first, *(_panel(name, _array(tensor[index]), sequential) for name, tensor in others.items())


def _is_sequence(attribution: Attribution) -> bool:
    """Whether rank-2 relevance means tokens: it is about ids, it was summed over a hidden dimension, or token texts
    are known.
    """
    return (
        attribution.of_ids or attribution.tokens is not None or attribution.features.dim() > attribution.relevance.dim()
    )


def _positions(attribution: Attribution, index: int) -> tuple[Sequence[str] | None, Mask | None]:
    """Token texts and the mask of real (unpadded) positions of one sample, where known."""
    tokens = None if attribution.tokens is None else attribution.tokens[index]
    mask = attribution.attention_mask
    if mask is None or mask.dim() != 2:
        return tokens, None
    return tokens, mask[index].bool().cpu().numpy()


def _image(name: str, attribution: Attribution, grid: tuple[int, int], index: int) -> Panel:
    """Relevance by patch, or by pixel without channels."""
    values = _array(attribution.relevance[index]).reshape(grid)
    if attribution.relevance.dim() == 3:
        return Panel(name, Layout.IMAGE, values, (), backdrop=_grey(attribution, index, grid))
    enlarged = max(1, LARGEST_SIDE // max(grid))
    size = (grid[0] * enlarged, grid[1] * enlarged)
    smooth = _array(attribution.map(size)[index])
    return Panel(name, Layout.IMAGE, values, (), smooth=smooth, backdrop=_grey(attribution, index, size))


def _grey(attribution: Attribution, index: int, size: tuple[int, ...]) -> Array | None:
    """The image that was explained in grey of this size, its darkest pixel 0 and its lightest 1."""
    if attribution.picture is None:
        return None
    grey = attribution.picture[index : index + 1].double().mean(1, keepdim=True)
    found = _array(interpolate(grey, size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0])
    spread = float(np.ptp(found)) or 1.0
    scaled: Array = (found - found.min()) / spread
    return scaled


def _panel(
    name: str,
    relevance: Array,
    sequential: bool,
    tokens: Sequence[str] | None = None,
    mask: Mask | None = None,
) -> Panel:
    """Lay out one sample's relevance (no batch dimension) by its rank."""
    if relevance.ndim == 3:  # [channels, height, width]
        return Panel(name, Layout.IMAGE, relevance.sum(axis=0), ())
    if relevance.ndim == 2:  # [positions, hidden]
        relevance, sequential = relevance.sum(axis=-1), True
    values = relevance.reshape(-1)
    places = tuple(range(len(values)))
    pieces = _pieces(tokens, places)
    if mask is not None and len(mask) == len(values):
        values, pieces, places = values[mask], tuple(compress(pieces, mask)), tuple(compress(places, mask))
    return Panel(name, Layout.TOKENS if sequential else Layout.FEATURES, values, pieces, places)


def _pieces(tokens: Sequence[str] | None, places: Sequence[int]) -> tuple[Piece, ...]:
    """Token pieces, or the positions' numbers where no (fitting) texts are known."""
    if tokens is not None and len(tokens) == len(places):
        return readable(tokens)
    return tuple(Piece(str(n), str(n), glued=False) for n in places)


def _sheet(ledger: Ledger, index: int) -> LedgerSheet:
    grouped: dict[tuple[str, bool], list[tuple[str, float]]] = {}
    for entry in ledger.entries:
        grouped.setdefault((entry.kind, entry.leak), []).append((entry.source, float(entry.amount[index])))
    # A kind that took no part (a leak of a rule at an operation that did not occur) would only be clutter.
    groups = [
        LedgerGroup(kind, leak, sum(amount for _, amount in sources), tuple(_largest_first(sources)))
        for (kind, leak), sources in grouped.items()
        if any(amount for _, amount in sources)
    ]
    groups.sort(key=lambda group: (group.leak, group.kind != INPUT_KIND, -abs(group.amount)))
    return LedgerSheet(
        tuple(groups),
        explained=float(ledger.explained[index]),
        total=float(ledger.total[index]),
        gap=float(ledger.gap[index]),
    )


def _largest_first(sources: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(sources, key=lambda source: -abs(source[1]))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``layer.10`` comes after ``layer.9``."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _common_prefix(names: Sequence[str]) -> str:
    """The dotted beginning all names share, never a whole name: ``encoder.layer.`` for its numbered
    blocks.
    """
    parts = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for candidates in zip(*parts, strict=False):
        if len(set(candidates)) > 1:
            break
        shared.append(candidates[0])
    return "".join(part + "." for part in shared)


def _layer_map(attribution: Attribution, index: int) -> LayerMap | None:
    """Rows for the taps with one hidden vector per shown position; others have no place in the map."""
    tokens, mask = _positions(attribution, index)
    lengths = [tap.shape[1] for tap in attribution.at.values() if tap.dim() == 3]
    length = attribution.relevance.shape[1] if attribution.relevance.dim() in (2, 3) else None
    if length not in lengths:  # patches, beside which the model has tokens of its own
        length = None
    rows: dict[str, Array] = {}
    for name in sorted(attribution.at, key=_natural):
        tap = attribution.at[name]
        if tap.dim() == 3 and length in (None, tap.shape[1]):
            length = tap.shape[1]
            rows[name] = _array(tap[index]).sum(axis=-1)
    if not rows or length is None:
        return None
    values, pieces = np.stack(list(rows.values())), _pieces(tokens, range(length))
    if mask is not None and len(mask) == length:
        values, pieces = (
            values[:, mask],
            tuple(compress(pieces, mask)),
        )
    prefix = _common_prefix(tuple(rows))
    return LayerMap(prefix, tuple(name.removeprefix(prefix) for name in rows), pieces, values)
