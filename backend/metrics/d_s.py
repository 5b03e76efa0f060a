# SPDX-License-Identifier: GPL-2.0-or-later
"""D_s: spatial distortion of QNR and HQNR (Alparone et al. 2008)."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import MIN_BLOCK_PIXELS, MetricValue
from .joint import CULPRIT, BlockPair, HsBands, JointMetric, StackMoments, quality
from .moments import band_result
from .q2n import TOO_FEW


class DS(JointMetric):
    """Mean over bands of `|Q(F_b, P) - Q(M_b, P_lr)|`: fused bands should relate to the guide as the HS bands do.

    Q is Wang and Bovik's index, averaged over blocks: 32 x 32 on the coarse grid (HS M and degraded guide P_lr),
    the same ground on the fine grid (fused F and guide P), as in the paper.
    """

    key = "D_s"
    variant = (
        "q = 1, MTF-degraded guide at the HS resolution, blocks of 32 coarse pixels on both grids; several guide "
        "bands: each HS band with the one that it correlates with most"
    )
    better = "lower"
    range = "0 to 2 (in practice below 1)"
    source = "Alparone et al., PE&RS 74(2), 2008"

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
        fine, coarse = (guide_quality(m, block.assignment) for m in (block.fine, block.coarse))
        difference = (fine - coarse) * weight
        self._difference = difference if self._difference is None else self._difference + difference
        self._weight += weight

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's value."""
        state = self._hs.state()
        if state is None or not state.any_pixel:
            return band_result(None, None)
        if self._difference is None:
            return MetricValue(None, TOO_FEW)
        return band_result(state, (self._difference / self._weight).abs(), culprit=CULPRIT)


def guide_quality(moments: StackMoments, assignment: Tensor) -> Tensor:
    """Return Q of each band and its guide band, `[bands]`."""
    bands = torch.arange(len(assignment), device=assignment.device)
    return quality(
        moments.guide_cross[assignment, bands],
        moments.variance,
        moments.guide_variance[assignment],
        moments.mean,
        moments.guide_mean[assignment],
    )
