# SPDX-License-Identifier: GPL-2.0-or-later
"""D_lambda_K: spectral distortion by consistency (Khan et al. 2009)."""

from __future__ import annotations

from .base import MetricValue, NoReferenceMetric, PairTile, ResolutionTile
from .q2n import Q2n


class DLambdaK(NoReferenceMetric):
    """`1 - Q2n(D F, M)`: the fused image, degraded with the HS sensor's MTF and decimated, should be the HS image.

    Computed on the coarse grid at the HS image's own sampling positions, in 32 x 32 blocks.
    """

    key = "D_lambda_K"
    variant = "1 - Q2n of the MTF-filtered, decimated fused image and the HS, 32 x 32 coarse blocks"
    better = "lower"
    range = "0 (consistent) to 1"
    source = "Khan, Alparone and Chanussot, IEEE TGRS 47(11), 2009"

    def reset(self) -> None:
        """Forget every tile."""
        self._q2n = Q2n()

    def update_tile(self, tile: ResolutionTile) -> None:
        """Add a tile."""
        for chunk in PairTile(tile.fused_lr, tile.hs, tile.mask_lr).chunks():
            self._q2n.update_tile(chunk)

    def compute(self) -> MetricValue:
        """Return one value for all bands."""
        q = self._q2n.compute()
        # Rounding may put Q2n of equal images an ulp above 1.
        return MetricValue(None if q.value is None else max(0.0, 1 - q.value), q.reason)
