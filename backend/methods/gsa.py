# SPDX-License-Identifier: GPL-2.0-or-later
"""GSA: Gram-Schmidt adaptive component substitution, in its form for hyperspectral bands."""

from __future__ import annotations

from torch import Tensor

from ..scene import SceneStatistics, Tile
from .component_substitution import ComponentSubstitution
from .injection import add_detail, intensity_weights


class GSA(ComponentSubstitution):
    """Gram-Schmidt adaptive (Aiazzi, Baronti and Selva, IEEE TGRS 45(10), 2007, eqs. 6 to 8).

    The intensity is the degraded guide's regression on the HS bands; each band gets the guide's detail beyond
    that intensity, times the band's own regression gain on it. For an MSI guide there is an intensity for each
    of its bands and the gains are those of the multivariate regression; one band is the published case.
    """

    def intensity(self, statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
        """Return the regression of the degraded guide on the HS bands (eq. 6; ridge for collinear bands)."""
        return intensity_weights(statistics)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS + gain (guide - intensity) (eq. 7)."""
        detail = tile.guide_core - self.low_resolution(tile)
        return add_detail(tile.upsample(tile.hs), self.gains, detail)
