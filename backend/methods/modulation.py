# SPDX-License-Identifier: GPL-2.0-or-later
"""What `sfim` and `mtf-glp-hpm` share: modulation by guide over low-pass filtered guide."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod
from .injection import guide_gains, modulate, summary


class GuideModulation(FusionMethod):
    """Modulates each band by its synthetic guide over that guide's low-pass version.

    The synthetic guide is the band's regression on the degraded guide: for PAN the equalisation of the guide to
    the band, for MSI the weighted guide of hypersharpening (Selva et al., IEEE JSTARS 8(6), 2015).
    """

    @abstractmethod
    def filter_gain(self, mtf_hs: float) -> float | None:
        """Return the low-pass filter's MTF gain at Nyquist; None for block means."""

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn each band's regression on the degraded guide."""
        statistics = scene.statistics(self.filter_gain(scene.mtf_hs), control)
        self.gains = guide_gains(statistics)
        self.hs_mean, self.guide_mean = statistics.hs_mean, statistics.guide_mean
        self.correlation = statistics.correlation().abs().amax(dim=1)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS times (band's guide over its low-pass version)."""
        low = tile.guide_lowpass(self.filter_gain(tile.mtf_hs))
        return modulate(
            tile.upsample(tile.hs), self.gains, tile.guide_core, low, self.hs_mean, self.guide_mean
        )

    def describe(self) -> dict[str, Any]:
        """Return each band's best correlation with a guide band."""
        return {"guide_correlation": summary(self.correlation, 3)}
