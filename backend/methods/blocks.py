# SPDX-License-Identifier: GPL-2.0-or-later
"""A tile as a linear block: its degradation and interpolation as small matrices, and least squares with them.

Everything is separable, so that a block of any size is solved exactly by the eigenvectors of two small matrices,
with the scene's true borders and no assumption of periodicity.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..degradation import Range, decimation_matrix, interpolation_matrix, separable
from ..scene import Tile


def shrunk(area: Range, by: int, size: int) -> Range:
    """Return the range without `by` pixels at each end, but for ends at the scene's border."""
    return area[0] + (by if area[0] > 0 else 0), area[1] - (by if area[1] < size else 0)


class Side:
    """The operators of one axis of a tile, from its coarse pixels to the fine ones around it and back.

    Args:
        tile: the tile.
        axis: 0 for rows, 1 for columns.
        margin: coarse pixels at the tile's ends to leave out.
        psf_pixels: coarse pixels that the PSF looks beyond its own.

    Attributes:
        coarse: coarse pixels, within the tile's, that the block covers (a slice).
        fine: their fine pixels, in scene coordinates.
        own: the tile's own pixels within `fine`.
        guide: `fine` within the tile's guide.
        up: interpolation from the tile's coarse pixels to `fine`.
    """

    def __init__(self, tile: Tile, axis: int, margin: int, psf_pixels: int) -> None:
        self._ratio, self._size, self._gain = tile.ratio, tile.scene_coarse[axis], tile.mtf_hs
        self._area = (tile.coarse_rows, tile.coarse_cols)[axis]
        wanted = (tile.rows, tile.cols)[axis]
        self._seen = shrunk(self._area, margin, self._size)
        self._inner = shrunk(self._seen, psf_pixels, self._size)
        self.coarse = slice(self._seen[0] - self._area[0], self._seen[1] - self._area[0])
        self.fine = self._seen[0] * self._ratio, self._seen[1] * self._ratio
        self.own = slice(wanted[0] - self.fine[0], wanted[1] - self.fine[0])
        start = (tile.fine_rows, tile.fine_cols)[axis][0]
        self.guide = slice(self.fine[0] - start, self.fine[1] - start)
        self.up = interpolation_matrix(self.fine, self._area, self._ratio, self._size)

    @property
    def inner(self) -> slice:
        """The coarse pixels, within the tile's, whose PSF the fine pixels hold in full."""
        return slice(self._inner[0] - self._area[0], self._inner[1] - self._area[0])

    @cached_property
    def down(self) -> Tensor:
        """Decimation from `fine` to `inner`."""
        return decimation_matrix(self._inner, self.fine, self._ratio, self._size * self._ratio, self._gain)

    @cached_property
    def round_trip(self) -> Tensor:
        """`down up`: the tile's coarse pixels interpolated and degraded again, on `inner`."""
        return self.down @ self.up

    def kernel(self, reach: int) -> Tensor:
        """Return `round_trip` on `inner` alone, cut to `reach` pixels on each side."""
        kernel = self.round_trip[:, self.inner]
        index = torch.arange(len(kernel))
        kernel = torch.where((index[:, None] - index[None, :]).abs() <= reach, kernel, torch.zeros(()))
        return kernel / kernel.sum(dim=1, keepdim=True)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of `down down'`."""
        gram = self.down.to(torch.float64) @ self.down.to(torch.float64).T
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp_min(0).to(torch.float32), vectors.to(torch.float32)


def pull_back(residual: Tensor, strength: Tensor, rows: Side, cols: Side) -> Tensor:
    """Return `D' (strength + D D')^-1 residual`, exactly, for each channel.

    It is the least change of a fine image that explains a coarse residual, for white noise of variance
    `strength` times that of the fine image's own prior.

    Args:
        residual: `[channels, inner rows, inner cols]`.
        strength: `[channels]`, >= 0.

    Returns:
        `[channels, fine rows, fine cols]`.
    """
    row_values, row_vectors = (t.to(residual) for t in rows.spectrum)
    col_values, col_vectors = (t.to(residual) for t in cols.spectrum)
    turned = separable(row_vectors.T, col_vectors.T, residual)
    turned = turned / (row_values[:, None] * col_values[None, :] + strength.to(residual)[:, None, None])
    solved = separable(row_vectors, col_vectors, turned)
    return separable(rows.down.T.contiguous(), cols.down.T.contiguous(), solved)
