# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiles for networks: of whole coarse pixels, with as much around them as a network's receptive field asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..degradation import Range, coarse_support
from ..scene import Tile, tile_support
from .base import FusionMethod
from .learned_planes import Subspace

STRIP_BYTES = 64 * 2**20
"""Size of a strip's image of all bands, as far as whole coarse pixels allow: a tile's context is worked off so."""
STRIP_COPIES = 3
"""Images of a strip that there are at a time."""

Area = tuple[Range, Range]
"""Rows and columns."""
Window = tuple[slice, slice, slice]
"""Index of `[bands, rows, cols]`."""


def widened(tile: Tile, margin: int) -> Tile:
    """Return the tile with `margin` coarse pixels more of its own on each side, in whole coarse pixels.

    The context must have been read with a halo that is larger by `margin`.
    """
    ratio = tile.ratio
    rows = coarse_support(tile.rows, ratio, tile.scene_coarse[0], margin)
    cols = coarse_support(tile.cols, ratio, tile.scene_coarse[1], margin)
    fine_rows, fine_cols = (rows[0] * ratio, rows[1] * ratio), (cols[0] * ratio, cols[1] * ratio)
    mask = torch.ones(fine_rows[1] - fine_rows[0], fine_cols[1] - fine_cols[0], dtype=torch.bool)
    return replace(tile, rows=fine_rows, cols=fine_cols, mask=mask.to(tile.hs.device), _lowpass={})


def strips(tile: Tile, halo: int) -> Iterator[tuple[Range, Tile]]:
    """Cut a tile of whole coarse pixels into strips of all its columns, so that an image of one is small.

    Args:
        tile: read with at least `halo`.
        halo: coarse pixels around a strip that what is made of it depends on.

    Yields:
        A strip's rows, counted from the tile's first, and the strip, a tile with no more context than it needs.
    """
    coarse_row = 4 * len(tile.hs) * (tile.cols[1] - tile.cols[0]) * tile.ratio
    step = max(1, STRIP_BYTES // coarse_row) * tile.ratio
    for start in range(*tile.rows, step):
        rows = start, min(start + step, tile.rows[1])
        yield (rows[0] - tile.rows[0], rows[1] - tile.rows[0]), narrowed(tile, rows, halo)


def coefficients_by_strips(
    form: FusionMethod, basis: Subspace, tile: Tile, bands: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Return coefficients of a method's result on a tile of whole coarse pixels, and some of its bands.

    The result itself is never there as a whole: with hundreds of bands it would be what takes the memory.

    Args:
        form: fitted.
        basis: what gives the coefficients.
        tile: read with at least the method's halo.
        bands: which ones.

    Returns:
        `[K, rows, cols]` and `[bands, rows, cols]`.
    """
    shape = tile.rows[1] - tile.rows[0], tile.cols[1] - tile.cols[0]
    coefficients = tile.hs.new_empty(len(basis.projector), *shape)
    seen = tile.hs.new_empty(len(bands), *shape)
    for (start, stop), strip in strips(tile, form.halo):
        image = form.fuse(strip)
        coefficients[:, start:stop] = basis.coefficients(image)
        seen[:, start:stop] = image[list(bands)]
    return coefficients, seen


def narrowed(tile: Tile, rows: Range, halo: int) -> Tile:
    """Return some rows of a tile, with the context above and below that a method of this halo depends on."""
    coarse, fine = tile_support(rows, tile.ratio, tile.scene_coarse[0], halo, tile.mtf_hs)
    coarse, fine = _common(coarse, tile.coarse_rows), _common(fine, tile.fine_rows)
    own, low, high = (
        slice(part[0] - whole[0], part[1] - whole[0])
        for part, whole in ((rows, tile.rows), (coarse, tile.coarse_rows), (fine, tile.fine_rows))
    )
    return replace(
        tile,
        rows=rows,
        hs=tile.hs[:, low],
        hs_mask=tile.hs_mask[low],
        coarse_rows=coarse,
        guide=tile.guide[:, high],
        guide_mask=tile.guide_mask[high],
        fine_rows=fine,
        mask=tile.mask[own],
        _lowpass={},
    )


def inner(tile: Tile) -> Window:
    """Return where the coarse pixels of a tile of whole coarse pixels lie in `tile.hs`."""
    rows, cols = _coarse(tile.rows, tile.ratio), _coarse(tile.cols, tile.ratio)
    return within(rows, cols, (tile.coarse_rows[0], tile.coarse_cols[0]))


def within(rows: Range, cols: Range, start: tuple[int, int]) -> Window:
    """Return where a range of pixels lies in an image whose first pixel is `start`."""
    return (
        slice(None),
        slice(rows[0] - start[0], rows[1] - start[0]),
        slice(cols[0] - start[1], cols[1] - start[1]),
    )


def coarse_around(tile: Tile, margin: int, limits: Tile) -> Area:
    """Return the coarse rows and columns of a tile with so many around it, those of another tile at most."""
    sides = zip((tile.rows, tile.cols), (limits.rows, limits.cols), tile.scene_coarse)
    wanted = [
        (coarse_support(own, tile.ratio, n, margin), _coarse(most, tile.ratio)) for own, most, n in sides
    ]
    rows, cols = (_common(*both) for both in wanted)
    return rows, cols


def fine_range(coarse: Range, ratio: int) -> Range:
    """Return the fine pixels of a range of coarse ones."""
    return coarse[0] * ratio, coarse[1] * ratio


def _common(one: Range, other: Range) -> Range:
    return max(one[0], other[0]), min(one[1], other[1])


def _coarse(area: Range, ratio: int) -> Range:
    return area[0] // ratio, area[1] // ratio
