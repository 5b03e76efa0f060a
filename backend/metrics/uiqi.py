# SPDX-License-Identifier: GPL-2.0-or-later
"""UIQI: the universal image quality index of Wang and Bovik."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import MIN_BLOCK_PIXELS, MetricValue, PairTile
from .joint import quality
from .moments import BandwiseMetric, BlockMoments, band_result, block_moments
from .q2n import TOO_FEW


class UIQI(BandwiseMetric):
    """`4 cov mF mR / ((vF + vR)(mF^2 + mR^2))` over 32 x 32 blocks, mean over blocks and bands.

    A block at the right or lower border, or with masked pixels, counts with the pixels that it has, by their
    number, from 64 pixels on. Where both blocks are constant only the means compare.
    """

    key = "UIQI"
    variant = "32 x 32 blocks, mean over blocks and bands; part blocks by their pixels"
    better = "higher"
    range = "-1 to 1 (identical)"
    source = "Wang and Bovik, IEEE SPL 9(3), 2002"

    def reset(self) -> None:
        """Forget every tile."""
        super().reset()
        self._sum: Optional[Tensor] = None
        self._weight: Optional[Tensor] = None

    def update_tile(self, tile: PairTile) -> None:
        """Add a chunk of a tile."""
        super().update_tile(tile)
        b: BlockMoments = tile.shared("blocks", block_moments)
        weight = b.count * (b.count >= MIN_BLOCK_PIXELS)
        pixels = b.count.clamp(min=1)[:, None]
        q = quality(b.cross / pixels, b.ss_f / pixels, b.ss_r / pixels, b.mean_f, b.mean_r)
        total = torch.where(weight[:, None] > 0, q * weight[:, None], torch.zeros_like(q)).sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self._weight = weight.sum() if self._weight is None else self._weight + weight.sum()

    def compute(self) -> MetricValue:
        """Return the mean over blocks and bands, and each band's mean."""
        if self.moments is None or self._sum is None or self._weight is None or self.moments.count == 0:
            return band_result(None, None)
        if self._weight == 0:
            return MetricValue(None, TOO_FEW)
        return band_result(self.moments.state(), self._sum / self._weight)
