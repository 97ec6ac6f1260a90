"""Images with pixel-level ground truth: in go a count and a seed, out come cluttered canvases that hold one handwritten
digit each, the pixels that are the digit's, and its class.

The digits are scikit-learn's (1,797 scans of 8 x 8 pixels, from the UCI optical recognition set). Clutter is made of
pieces of other digits, strokes and dots as bright as the digit: neither brightness nor place alone gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.errors import InputError, MissingExtraError, nearest

SIZE = 32  # pixels along each side of a canvas
ENLARGED = (14, 18)  # least and largest height and width of the enlarged digit, in pixels
SLANT = 0.15  # largest slant to either side, in columns of the scan per row
THRESHOLD = 0.3  # a pixel is the digit's where the digit alone is brighter than this; the brightest are 1
SPLITS = {"train": slice(None, 1297), "test": slice(1297, None)}
SCAN = 8
FRAGMENTS, PIECE = 5, 4  # pieces of other digits on a canvas; side of a piece in pixels of the scan
STROKES, DOTS = 2, 8
NOISE = 0.05  # standard deviation


@dataclass(frozen=True)
class Digits:
    """Canvases with one digit each.

    images: [n, 1, 32, 32] float32 between 0 (black) and 1. masks: [n, 32, 32], True where the digit itself is brighter
    than :data:`THRESHOLD`. labels: [n] int64, 0 to 9.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor


def digits(count: int, seed: int, split: str = "test") -> Digits:
    """``count`` canvases with a digit of ``split`` at a place drawn uniformly; the same for the same arguments.

    The digit is enlarged bilinearly to 14 to 18 pixels a side and slanted a little; nothing covers it or touches it.
    split: ``"train"`` (the first 1,297 scans of scikit-learn's ``load_digits``, which
    :func:`fxlrp.shipped.digits_vit` has learnt from) or ``"test"`` (the other 500); clutter is cut out of scans of the
    same split.

    Raises:
        InputError: count is below 1, or there is no such split.
        MissingExtraError: scikit-learn is not installed.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}.")
    if split not in SPLITS:
        raise InputError(f"There is no split '{split}'.{nearest(split, SPLITS)}")
    scans, classes = scanned_digits()
    scans, classes = scans[SPLITS[split]], classes[SPLITS[split]]
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(scans), (count,), generator=rng)
    side = torch.randint(ENLARGED[0], ENLARGED[1] + 1, (count, 2), generator=rng)
    corner = (torch.rand(count, 2, generator=rng) * (SIZE - side + 1)).long()
    slant = SLANT * (2 * torch.rand(count, generator=rng) - 1)
    digit = _pasted(scans[chosen], corner, side, slant)
    near = F.max_pool2d(digit[:, None], 3, stride=1, padding=1)[:, 0] > 0.05
    clutter = torch.stack([_fragments(scans, count, rng), _strokes(count, rng), _dots(count, rng)]).amax(0)
    noise = NOISE * torch.randn(digit.shape, generator=rng)
    images = (clutter.masked_fill(near, 0.0).maximum(digit) + noise).clamp(0.0, 1.0)
    return Digits(images[:, None], digit > THRESHOLD, classes[chosen])


@cache
def scanned_digits() -> tuple[Tensor, Tensor]:
    """All scans [1797, 8, 8], between 0 and 1, and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "evaluate") from error
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float() / 16.0, torch.from_numpy(bunch.target).long()


def _pasted(scans: Tensor, corner: Tensor, side: Tensor, slant: Tensor) -> Tensor:
    """``scans`` [n, 8, 8] on black canvases: of height and width ``side``, upper left at ``corner`` [n, 2], slanted."""
    pixels = torch.arange(SIZE) + 0.5
    places = 2.0 * (pixels - corner[..., None]) / side[..., None] - 1.0  # [n, 2, 32], the scan from -1 to 1
    rows, columns = places[:, 0, :, None], places[:, 1, None, :]
    grid = torch.stack(torch.broadcast_tensors(columns + slant[:, None, None] * rows, rows), -1)
    return F.grid_sample(scans[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def _fragments(scans: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Canvases with pieces of scans, each enlarged like a digit and anywhere."""
    n = count * FRAGMENTS
    source = scans[torch.randint(len(scans), (n,), generator=rng)]
    first = torch.randint(SCAN - PIECE + 1, (n, 2, 1), generator=rng)
    place = torch.arange(SCAN)
    inside = (place >= first) & (place < first + PIECE)
    pieces = source * (inside[:, 0, :, None] & inside[:, 1, None, :])
    side = torch.randint(ENLARGED[0], ENLARGED[1] + 1, (n, 2), generator=rng)
    centre = torch.rand(n, 2, generator=rng) * SIZE
    corner = (centre - (first[..., 0] + PIECE / 2) * side / SCAN).round()
    slant = SLANT * (2 * torch.rand(n, generator=rng) - 1)
    return _pasted(pieces, corner, side, slant).unflatten(0, (count, FRAGMENTS)).amax(1)


def _strokes(count: int, rng: torch.Generator) -> Tensor:
    """Canvases with straight strokes of 4 to 10 pixels, about as thick as a digit's."""
    start = torch.rand(count, STROKES, 2, generator=rng) * SIZE
    angle = torch.rand(count, STROKES, generator=rng) * 2 * torch.pi
    length = 4 + 6 * torch.rand(count, STROKES, generator=rng)
    along = torch.stack([angle.sin(), angle.cos()], -1)
    pixels = torch.arange(SIZE) + 0.5
    away = torch.stack(torch.meshgrid(pixels, pixels, indexing="ij"), -1) - start[:, :, None, None]
    reach = (away * along[:, :, None, None]).sum(-1).clamp(min=0.0).minimum(length[..., None, None])
    distance = (away - reach[..., None] * along[:, :, None, None]).norm(dim=-1)
    return (1.8 - distance).clamp(0.0, 1.0).amax(1)


def _dots(count: int, rng: torch.Generator) -> Tensor:
    """Canvases with single bright pixels."""
    canvas = torch.zeros(count, SIZE * SIZE)
    places = torch.randint(SIZE * SIZE, (count, DOTS), generator=rng)
    brightness = 0.3 + 0.7 * torch.rand(count, DOTS, generator=rng)
    return canvas.scatter(1, places, brightness).unflatten(1, (SIZE, SIZE))
