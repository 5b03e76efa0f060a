# SPDX-License-Identifier: GPL-2.0-or-later
"""D_lambda: spectral distortion of QNR (Alparone et al. 2008)."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import MIN_BLOCK_PIXELS, MetricValue
from .joint import BlockPair, HsBands, JointMetric, StackMoments, quality
from .moments import band_result
from .q2n import TOO_FEW


class DLambda(JointMetric):
    """Mean over band pairs of `|Q(F_i, F_j) - Q(M_i, M_j)|`: the fused bands should relate as the HS bands do.

    Q is Wang and Bovik's index, averaged over blocks: 32 x 32 on the coarse grid for the HS M, the same ground
    (32 ratio) on the fine grid for the fused F, as in the paper. All pairs, exactly. Plain interpolation scores
    about 0 by construction, so a low value does not show a good fusion by itself.
    """

    key = "D_lambda"
    variant = "all band pairs, p = 1, HS at its own resolution, blocks of 32 coarse pixels on both grids"
    better = "lower"
    range = "0 to 2 (in practice below 1)"
    source = "Alparone et al., PE&RS 74(2), 2008"
    needs_pairs = True

    def reset(self) -> None:
        """Forget every tile."""
        self._hs = HsBands()
        self._difference: Optional[Tensor] = None
        self._weight = 0

    def update_block(self, block: BlockPair) -> None:
        """Add one block of a tile."""
        self._hs.add(block.hs_min, block.hs_max)
        if min(block.coarse.count, block.fine.count) < MIN_BLOCK_PIXELS:
            return
        weight = block.coarse.count
        difference = (pair_quality(block.fine) - pair_quality(block.coarse)) * weight
        self._difference = difference if self._difference is None else self._difference + difference
        self._weight += weight

    def compute(self) -> MetricValue:
        """Return the mean over pairs; each band's value is its mean over the other bands."""
        state = self._hs.state()
        if state is None or not state.any_pixel:
            return band_result(None, None)
        if self._difference is None:
            return MetricValue(None, TOO_FEW)
        distance = (self._difference / self._weight).abs()
        # A fused band with NaN spoils its own row and column: it is named, the other bands keep their values.
        broken = ~torch.isfinite(distance.diagonal())
        partners = ~(state.unusable | state.constant | broken)
        distance.fill_diagonal_(0)
        sums = torch.where(partners, distance, torch.zeros_like(distance)).sum(dim=1)
        others = partners.sum() - partners.to(sums.dtype)
        if not (others > 0).any():
            return MetricValue(None, "fewer than two HS bands to compare")
        values = torch.where(broken, torch.full_like(sums, float("nan")), sums / others.clamp(min=1))
        return band_result(state, values)


def pair_quality(moments: StackMoments) -> Tensor:
    """Return Q of every pair of bands, `[bands, bands]`.

    Raises:
        ValueError: the moments were made without pairs.
    """
    if moments.pairs is None:
        raise ValueError("band pairs are needed")
    var, mean = moments.variance, moments.mean
    return quality(moments.pairs, var[:, None], var[None, :], mean[:, None], mean[None, :])
