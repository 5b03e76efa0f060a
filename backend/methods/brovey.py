# SPDX-License-Identifier: GPL-2.0-or-later
"""Weighted Brovey: modulation by guide over intensity."""

from __future__ import annotations

from torch import Tensor

from ..scene import SceneStatistics, Tile
from .component_substitution import ComponentSubstitution
from .injection import modulate, nonnegative_intensity_weights


class Brovey(ComponentSubstitution):
    """Weighted Brovey (Gillespie et al., Remote Sens. Environ. 22(3), 1987; Vivone et al. 2015, sec. II-B).

    The intensity's weights are the non-negative least-squares fit of the degraded guide. Each band is modulated
    by its own regression on the intensity, so bands that do not follow the guide are not scaled by it.
    """

    def intensity(self, statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
        """Return the non-negative weights of the HS bands that best explain the degraded guide."""
        return nonnegative_intensity_weights(statistics)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS times (band's guide over band's intensity)."""
        return modulate(
            tile.upsample(tile.hs),
            self.gains,
            tile.guide_core,
            self.low_resolution(tile),
            self.hs_mean,
            self.intensity_mean,
        )
