# SPDX-License-Identifier: GPL-2.0-or-later
"""Moments of images and guide together, block by block, on the fine and on the coarse grid.

A coarse block of 32 x 32 pixels and the `32 ratio` x `32 ratio` fine pixels on the same ground make one block
pair. One product of matrices a block gives the covariances of all pairs of bands and of every band with the
guide, from which D_lambda, D_s and D_s_R follow exactly, for any number of bands.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .base import BLOCK, CHUNK_VALUES, CHUNK_VALUES_CUDA, RELATIVE_ZERO, NoReferenceMetric, ResolutionTile
from .moments import BandState, is_flat

CULPRIT = "the fused image or the guide"


@dataclass
class StackMoments:
    """Moments of an image and a guide over one block, float64.

    Attributes:
        count: valid pixels.
        mean: `[bands]`; guide_mean: `[guide bands]`.
        variance: `[bands]`; guide_variance: `[guide bands]` (population form).
        guide_cross: covariances of guide and image, `[guide bands, bands]`.
        pairs: covariances of all bands, `[bands, bands]`, or None where they were not wanted.
        guide_pairs: covariances of the guide's bands, `[guide bands, guide bands]`.
    """

    count: int
    mean: Tensor
    guide_mean: Tensor
    variance: Tensor
    guide_variance: Tensor
    guide_cross: Tensor
    guide_pairs: Tensor
    pairs: Optional[Tensor]


@dataclass
class BlockPair:
    """One block on both grids, with the range of the HS bands in it (`[bands]`, infinite where empty)."""

    fine: StackMoments
    coarse: StackMoments
    hs_min: Tensor
    hs_max: Tensor
    assignment: Tensor


def stack_moments(image: Tensor, guide: Tensor, mask: Tensor, pairs: bool) -> StackMoments:
    """Return the moments of a block of an image and its guide.

    Args:
        image: `[bands, rows, cols]`.
        guide: `[guide bands, rows, cols]`.
        mask: `[rows, cols]` bool.
        pairs: also the covariances of all pairs of bands.
    """
    count = int(mask.sum())
    full = count == mask.numel()
    bands, layers = image.shape[0], image.shape[0] + guide.shape[0]
    limit = CHUNK_VALUES_CUDA if image.is_cuda else CHUNK_VALUES
    step = max(1, limit // (layers * max(1, mask.shape[1])))

    def slab(row: int) -> Tensor:
        rows = slice(row, row + step)
        if full:
            parts = [image[:, rows].flatten(1), guide[:, rows].flatten(1)]
        else:
            parts = [image[:, rows][:, mask[rows]], guide[:, rows][:, mask[rows]]]
        return torch.cat([part.to(torch.float64) for part in parts])

    starts = range(0, mask.shape[0], step)
    mean = torch.stack([slab(row).sum(dim=1) for row in starts]).sum(dim=0) / max(count, 1)
    cross = torch.zeros(
        (layers if pairs else layers - bands, layers), dtype=torch.float64, device=image.device
    )
    squares = torch.zeros_like(mean)
    for row in starts:
        x = slab(row).sub_(mean[:, None])
        if pairs:
            cross.addmm_(x, x.T)
        else:
            cross.addmm_(x[bands:], x.T)
            squares += x.square_().sum(dim=1)
    cross /= max(count, 1)
    variance = cross.diagonal() if pairs else squares / max(count, 1)
    guide_rows = cross[-guide.shape[0] :]
    return StackMoments(
        count,
        mean[:bands],
        mean[bands:],
        variance[:bands],
        variance[bands:],
        guide_rows[:, :bands],
        guide_rows[:, bands:],
        cross[:bands, :bands] if pairs else None,
    )


def block_pairs(tile: ResolutionTile, pairs: bool) -> Iterator[BlockPair]:
    """Yield a tile's blocks on both grids; `pairs` as in `stack_moments`."""
    side = BLOCK * tile.ratio
    fused, guide = tile.fused[:, tile.core[0], tile.core[1]], tile.guide[:, tile.core[0], tile.core[1]]
    mask = tile.mask[tile.core]
    rows, cols = tile.mask_lr.shape
    for row in range(0, -(-rows // BLOCK)):
        for col in range(0, -(-cols // BLOCK)):
            r, c = (slice(i * BLOCK, (i + 1) * BLOCK) for i in (row, col))
            y, x = (slice(i * side, (i + 1) * side) for i in (row, col))
            valid = tile.mask_lr[r, c]
            hs = tile.hs[:, r, c]
            least, largest = hs_range(hs, valid)
            yield BlockPair(
                stack_moments(fused[:, y, x], guide[:, y, x], mask[y, x], pairs),
                stack_moments(hs, tile.guide_lr[:, r, c], valid, pairs),
                least,
                largest,
                tile.assignment,
            )


def hs_range(hs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and largest valid value of each band, `[bands]` float64; infinite where none is valid."""
    hs = hs.to(torch.float64)
    infinity = torch.full((), float("inf"), dtype=torch.float64, device=hs.device)
    least = torch.where(mask, hs, infinity).amin(dim=(1, 2))
    return least, torch.where(mask, hs, -infinity).amax(dim=(1, 2))


def quality(cov: Tensor, var_x: Tensor, var_y: Tensor, mean_x: Tensor, mean_y: Tensor) -> Tensor:
    """Return Wang and Bovik's Q from moments, `4 cov mx my / ((vx + vy)(mx^2 + my^2))`, broadcast.

    Where both variances are zero only the means compare, where both means are zero only the structure
    (the limits that keep `Q(x, x) = 1`).
    """
    var_x = torch.where(var_x <= (RELATIVE_ZERO * mean_x) ** 2, torch.zeros_like(var_x), var_x)
    var_y = torch.where(var_y <= (RELATIVE_ZERO * mean_y) ** 2, torch.zeros_like(var_y), var_y)
    spread, size = var_x + var_y, mean_x**2 + mean_y**2
    one = torch.ones((), dtype=cov.dtype, device=cov.device)
    structure = torch.where(spread == 0, one, 2 * cov / torch.where(spread == 0, one, spread))
    level = torch.where(size == 0, one, 2 * mean_x * mean_y / torch.where(size == 0, one, size))
    return structure * level


class HsBands:
    """The range of the HS bands over all tiles, which says in which bands the fused image can be judged."""

    def __init__(self) -> None:
        self.least: Optional[Tensor] = None
        self.largest: Optional[Tensor] = None

    def add(self, least: Tensor, largest: Tensor) -> None:
        """Add a tile's range, `[bands]` each."""
        self.least = least if self.least is None else torch.minimum(self.least, least)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def state(self) -> Optional[BandState]:
        """Return which bands can be judged; None before the first tile."""
        if self.least is None or self.largest is None:
            return None
        unusable = torch.isnan(self.least) | torch.isnan(self.largest)
        unusable |= (self.largest >= self.least) & ~torch.isfinite(self.largest - self.least)
        some = bool((unusable | (self.largest >= self.least)).any())
        return BandState(some, unusable, is_flat(self.least, self.largest))


class JointMetric(NoReferenceMetric):
    """An index of the moments of images and guide together."""

    def update_tile(self, tile: ResolutionTile) -> None:
        """Add a tile."""
        for block in block_pairs(tile, self.needs_pairs):
            self.update_block(block)

    @abstractmethod
    def update_block(self, block: BlockPair) -> None:
        """Add one block of a tile."""
