# SPDX-License-Identifier: GPL-2.0-or-later
"""How far the HS image lies off the guide's ground where its georeference is wrong by more than a pixel of its own.

Satellites' hyperspectral images may lie hundreds of metres off (PRISMA against Landsat 8: by up to ten of its pixels,
USGS Open-File Report 2021-1030-K). Seen at the right place, the guide at coarse resolution is a linear mixture of the
HS bands: as in `response_estimation`, after Simoes et al., IEEE TGRS 53(6), 2015, sec. IV, the offset is the one at
which the least of the guide's variance is left unexplained. Here whole coarse pixels are tried, as far as `LIMIT`; what
remains, less than one, is the business of the methods that register the pair themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .control import Control
from .degradation import Range
from .io.source import DegradedSource, Source

LIMIT = 12
"""Largest offset looked for, in coarse pixels."""
LEAST = 1.25
"""Smallest offset that is made good; methods that look for one themselves find those up to 1."""
LEAST_SIDE = 16
"""Coarse pixels along a side that both images must share: with fewer, anything fits."""
WINDOW, WINDOWS = 64, 2
"""Coarse pixels along a side of a window at most, and windows along each axis of the scene."""
LEAST_VALID = 0.6
"""Share of a window that must be valid."""
COMPONENTS, PIXELS_EACH = 10, 16
"""Principal components of the HS bands that explain the guide at most, and pixels that there must be for each."""
BETTER, UNIQUE, AROUND = 0.6, 0.75, 2
"""What is left unexplained at the offset may be this share of what is left where the image lies, and this share of
what is left anywhere else, more than so many coarse pixels away: patterns repeat themselves."""

RIDGE = 1e-9
"""Of the least squares, relative to their sums."""
ENOUGH = 1e-3
"""Unexplained share where the image lies below which nothing is to be gained."""


@dataclass(frozen=True)
class Coregistration:
    """Where the HS image belongs.

    Attributes:
        rows, cols: guide pixels by which it has to be moved down and to the right; 0 where it lies right to about a
            coarse pixel, or where the pair does not say clearly that it does not.
        unexplained: share of the guide's variance that the HS image leaves unexplained there, 0 to 1.
        unmoved: the same where the image lies.
    """

    rows: int
    cols: int
    unexplained: float
    unmoved: float

    @property
    def moves(self) -> bool:
        """The image is to be moved."""
        return (self.rows, self.cols) != (0, 0)


@dataclass
class _Window:
    """A part of the scene.

    Attributes:
        design: `[components + 1, rows, cols]` float64: what can explain the guide, and ones; 0 where the HS image is
            invalid.
        guide: at coarse resolution with surroundings, `[guide bands, rows + 2 reach, cols + 2 reach]` float64, centred;
            0 where it is invalid.
        seen: `[rows + 2 reach, cols + 2 reach]`, True where it is valid.
    """

    design: Tensor
    guide: Tensor
    seen: Tensor


def find_coregistration(
    hs: Source, guide: Source, ratio: int, mtf_gain: float, control: Control
) -> Coregistration | None:
    """Find how far the HS image lies off the guide's ground.

    Args:
        hs: all bands on the coarse grid; those without enough data are left out.
        guide: on the fine grid, `ratio` times as large.
        ratio: fine pixels per coarse pixel.
        mtf_gain: of the HS sensor at Nyquist.
        control: stops the search.

    Returns:
        None where the pair is too small, or too little of it is valid, to say.
    """
    reach = min(LIMIT, min(hs.rows, hs.cols) - LEAST_SIDE)
    if reach < 2:
        return None
    coarse = DegradedSource(guide, ratio, mtf_gain)
    windows = [
        window
        for rows in _ranges(hs.rows)
        for cols in _ranges(hs.cols)
        if (window := _window(hs, coarse, rows, cols, reach, control)) is not None
    ]
    if not windows:
        return None
    left = _unexplained(windows, control)
    row, col = divmod(int(left.argmin()), left.shape[1])
    unmoved = float(left[reach, reach])
    stays = Coregistration(0, 0, unmoved, unmoved)
    if not _clear(left, row, col, reach):
        return stays
    lines = (row, left[:, col]), (col, left[row])
    rows, cols = (at - reach + _vertex(line[at - 1 : at + 2]) for at, line in lines)
    if max(abs(rows), abs(cols)) < LEAST:
        return stays
    return Coregistration(round(rows * ratio), round(cols * ratio), float(left[row, col]), unmoved)


def _clear(left: Tensor, row: int, col: int, reach: int) -> bool:
    """Return whether the least value, at (row, col), says clearly that the image belongs there."""
    edges = (0, 2 * reach)
    if left[reach, reach] <= ENOUGH or row in edges or col in edges:
        return False
    others = left.clone()
    others[max(0, row - AROUND) : row + AROUND + 1, max(0, col - AROUND) : col + AROUND + 1] = 1.0
    least = left[row, col]
    return bool(least <= BETTER * left[reach, reach]) and bool(least <= UNIQUE * others.min())


def _ranges(size: int) -> list[Range]:
    """Return where windows lie along an axis."""
    side = min(WINDOW, size)
    count = min(WINDOWS, size // side)
    starts = [round(i * (size - side) / max(1, count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def _window(
    hs: Source, coarse: Source, rows: Range, cols: Range, reach: int, control: Control
) -> _Window | None:
    """Read a window; None where too little of it is valid."""
    control.check()
    image, samples = hs.read_samples(rows, cols)
    counts = samples.sum(dim=(1, 2))
    bands = counts >= LEAST_VALID * counts.max()
    keep = samples[bands].all(dim=0)
    components = min(COMPONENTS, int(keep.sum()) // PIXELS_EACH)
    if components < 1 or float(keep.float().mean()) < LEAST_VALID:
        return None
    values = image[bands][:, keep].double()
    values = values - values.mean(dim=1, keepdim=True)
    spread = values.square().mean(dim=1).sqrt()
    values = values[spread > 0] / spread[spread > 0, None]
    if len(values) == 0:
        return None
    vectors = torch.linalg.eigh(values @ values.T)[1][:, -components:]
    scores = vectors.T @ values
    design = torch.zeros(len(scores) + 1, *keep.shape, dtype=torch.float64)
    design[:-1, keep] = scores / scores.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    design[-1, keep] = 1.0
    guide, seen = _with_surroundings(coarse, rows, cols, reach)
    if not bool(seen.any()):
        return None
    mean = guide[:, seen].mean(dim=1)[:, None, None]
    return _Window(design, torch.where(seen, guide - mean, 0.0).double(), seen)


def _with_surroundings(source: Source, rows: Range, cols: Range, reach: int) -> tuple[Tensor, Tensor]:
    """Return a window of a source and `reach` pixels around it, and where that is valid: not beyond the source."""
    inside = [
        (max(0, start - reach), min(size, stop + reach))
        for (start, stop), size in ((rows, source.rows), (cols, source.cols))
    ]
    values, valid = source.read(*inside)
    (top, bottom), (left, right) = (
        (found[0] - start + reach, stop + reach - found[1])
        for found, (start, stop) in zip(inside, (rows, cols))
    )
    around = (left, right, top, bottom)
    return functional.pad(values, around), functional.pad(valid, around)


def _unexplained(windows: list[_Window], control: Control) -> Tensor:
    """Return the share of the guide's variance that is left for every offset, `[2 reach + 1, 2 reach + 1]`.

    The entry at (reach + rows, reach + cols) is of the HS image moved by so many coarse pixels; 1 where too little of
    the images then lies on each other.
    """
    parts = []
    for window in windows:
        control.check()
        parts.append(_left_and_whole(window))
    rest, whole = (torch.stack(part).sum(dim=0) for part in zip(*parts))
    alive = whole > 1e-12 * whole.max()
    share = torch.where(alive, rest / whole.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)
    count = alive.sum(dim=0)
    return torch.where(count > 0, share.sum(dim=0) / count.clamp_min(1), 1.0)


def _left_and_whole(window: _Window) -> tuple[Tensor, Tensor]:
    """Return what least squares leave of the guide, and its variance, both times the pixels: `[bands, rows, cols]`.

    Of every offset at once: sums over pixels are correlations. 0 where too few pixels lie on each other.
    """
    design, guide = window.design, window.guide
    upper = torch.triu_indices(len(design), len(design))
    products = _correlations(window.seen[None].double(), design[upper[0]] * design[upper[1]])[0]
    system = products.new_zeros(*products.shape[1:], len(design), len(design))
    system[..., upper[0], upper[1]] = system[..., upper[1], upper[0]] = products.movedim(0, -1)
    cross = _correlations(guide, design)
    squares = _correlations(guide.square(), design[-1:])[:, 0]
    pixels = system[..., -1, -1]
    ridge = RIDGE * system.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(1e-9)
    system = system + ridge[..., None, None] * torch.eye(len(design), dtype=system.dtype)
    weights = torch.linalg.solve(system, cross.permute(2, 3, 1, 0))
    explained = (weights * cross.permute(2, 3, 1, 0)).sum(dim=2).movedim(2, 0)
    enough = pixels >= LEAST_SIDE**2 / 2
    whole = squares - cross[:, -1].square() / pixels.clamp_min(1.0)
    return (squares - explained) * enough, whole * enough


def _correlations(images: Tensor, kernels: Tensor) -> Tensor:
    """Return `[images, kernels, lags, lags]`: sums of products of a kernel and an image from each lag on.

    Args:
        images: `[images, rows + lags - 1, cols + lags - 1]`.
        kernels: `[kernels, rows, cols]`.
    """
    size, lags = images.shape[1:], [n - k + 1 for n, k in zip(images.shape[1:], kernels.shape[1:])]
    spectra = torch.fft.rfft2(images)[:, None] * torch.fft.rfft2(kernels, s=size).conj()
    return torch.fft.irfft2(spectra, s=size)[..., : lags[0], : lags[1]]


def _vertex(values: Tensor) -> float:
    """Return where the parabola through three neighbouring values, the middle one the least, has its vertex."""
    before, middle, after = values.tolist()
    curvature = before - 2 * middle + after
    return 0.5 * (before - after) / curvature if curvature > 0 else 0.0
