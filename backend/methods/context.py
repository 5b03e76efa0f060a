# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiles for networks: of whole coarse pixels, with as much around them as a network's receptive field asks for."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..degradation import Range, coarse_support
from ..scene import Tile

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


def _coarse(fine: Range, ratio: int) -> Range:
    return fine[0] // ratio, fine[1] // ratio
