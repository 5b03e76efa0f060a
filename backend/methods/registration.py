# SPDX-License-Identifier: GPL-2.0-or-later
"""A tile as it would be if the guide were in register with the HS image and the PSF were the one found.

The guide is moved, by less than a few fine pixels as a rule, and not the HS image: the result then degrades to
the HS values as they are. A method can move its result back onto the guide's ground (`Registration.back`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..degradation import Range, psf_reach, separable
from ..scene import Tile

STILL = 0.02
"""Shifts below this many fine pixels are none."""
TAPS = 5
"""Samples on each side that the moved guide is interpolated from."""


@dataclass(frozen=True)
class Registration:
    """How the pair's images relate.

    Attributes:
        ratio: fine pixels per coarse pixel.
        mtf_gain: of the HS sensor at its Nyquist frequency.
        shift: (rows, cols): the ground of fine pixel p of the HS image is at p + shift in the guide.
        nominal_gain: the gain with which the scene reads its tiles.
    """

    ratio: int
    mtf_gain: float
    shift: tuple[float, float]
    nominal_gain: float

    @property
    def still(self) -> bool:
        """The guide needs no moving."""
        return max(abs(s) for s in self.shift) < STILL

    @property
    def psf_pixels(self) -> int:
        """How many coarse pixels the PSF looks beyond its own."""
        return math.ceil(psf_reach(self.ratio, self.mtf_gain) / self.ratio)

    @property
    def margin(self) -> int:
        """Coarse pixels at a tile's edge that are lost to the shift and to a wider PSF than the nominal one."""
        wider = psf_reach(self.ratio, self.mtf_gain) - psf_reach(self.ratio, self.nominal_gain)
        moved = 0 if self.still else math.ceil(max(abs(s) for s in self.shift)) + TAPS
        return math.ceil(max(0, wider + moved) / self.ratio)

    def back(self, sides: tuple[Range, Range], own: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Return what moves a result onto the guide's ground: for rows and columns, `[own pixels, fine pixels]`.

        Args:
            sides: fine pixels (rows, cols) that the result is known on.
            own: those to keep.
        """
        moves = (0.0, 0.0) if self.still else self.shift
        first, second = (shift_matrix(b - a, -s)[o] for (a, b), s, o in zip(sides, moves, own))
        return first, second

    def apply(self, tile: Tile) -> Tile:
        """Return the tile in register, with `margin` fewer coarse pixels at each edge within the scene."""
        if self.still and self.mtf_gain == tile.mtf_hs:
            return tile
        rows, row_part = _cut(tile.coarse_rows, self.margin, tile.scene_coarse[0])
        cols, col_part = _cut(tile.coarse_cols, self.margin, tile.scene_coarse[1])
        guide, mask = tile.guide, tile.guide_mask
        if not self.still:
            sides = [shift_matrix(n, s) for n, s in zip(guide.shape[1:], self.shift)]
            guide = separable(*sides, guide)
            if not bool(mask.all()):
                sides = [side.abs() for side in sides]
                mask = separable(*sides, (~mask).to(guide.dtype)) < 1e-3
        return replace(
            tile,
            hs=tile.hs[:, row_part, col_part],
            hs_mask=tile.hs_mask[row_part, col_part],
            coarse_rows=rows,
            coarse_cols=cols,
            guide=guide,
            guide_mask=mask,
            mtf_hs=self.mtf_gain,
            _lowpass={},
        )


def _cut(area: Range, by: int, size: int) -> tuple[Range, slice]:
    """Return the range without `by` pixels at its ends within the scene, and where that lies in it."""
    start = area[0] + (by if area[0] > 0 else 0)
    stop = area[1] - (by if area[1] < size else 0)
    return (start, stop), slice(start - area[0], stop - area[0])


def shift_matrix(size: int, shift: float) -> Tensor:
    """Return interpolation at positions moved by `shift`, ends replicated, `[size, size]`.

    A sinc under a Lanczos window of `TAPS` samples on each side: shorter kernels blur the very detail that is
    to be injected (cubic convolution loses a quarter of it at half a pixel).
    """
    whole = math.floor(shift)
    offsets = torch.arange(1 - TAPS, TAPS + 1)
    distance = offsets.to(torch.float64) - (shift - whole)
    weights = torch.sinc(distance) * torch.sinc(distance / TAPS)
    weights = (weights / weights.sum()).to(torch.float32)
    index = torch.arange(size)
    matrix = torch.zeros(size, size)
    columns = (index[:, None] + whole + offsets[None, :]).clamp(0, size - 1)
    return matrix.scatter_add_(1, columns, weights.expand(size, -1).contiguous())
