# SPDX-License-Identifier: GPL-2.0-or-later
"""BT-H: Brovey transform with haze correction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..scene import Scene, SceneStatistics, Tile
from .component_substitution import ComponentSubstitution
from .injection import intensity_weights, modulate, summary


class BtH(ComponentSubstitution):
    """Haze-corrected Brovey transform (Lolli, Alparone, Garzelli and Vivone, IEEE GRSL 14(12), 2017).

    `fused = H_b + (h_b - H_b) (p - H_p) / (i - H_p)`: the path radiance H, which carries no contrast, is kept out of
    the modulation. i is the guide's regression on the HS bands. H_b is the band's darkest valid coarse pixel, as
    in dark-object subtraction; 0 where that is negative.

    The paper's ratio is the same for all bands. Here each band is modulated by its own regression on i, from which
    H_b is subtracted as well: a band that is a multiple of i above its haze gets the paper's ratio, one that does
    not follow i is left alone. Then H_p cancels and need not be known.
    """

    def intensity(self, statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
        """Return the regression of the degraded guide on the HS bands."""
        return intensity_weights(statistics)

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn intensity, gains and haze at coarse resolution."""
        super().fit(scene, control)
        self.haze = dark_object(scene, control).clamp_min(0.0)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: haze + (interpolated HS - haze) times the band's ratio."""
        haze = self.haze.to(tile.hs)[:, None, None]
        fused = modulate(
            tile.upsample(tile.hs - haze),
            self.gains,
            tile.guide_core,
            self.low_resolution(tile),
            self.hs_mean - self.haze,
            self.intensity_mean,
        )
        return fused.add_(haze)

    def describe(self) -> dict[str, Any]:
        """Return how well the HS bands explain the guide, and the haze in the HS image's units."""
        return {**super().describe(), "haze": summary(self.haze)}


def dark_object(scene: Scene, control: Control) -> Tensor:
    """Return the minimum of every HS band over valid pixels, `[bands]` float64.

    A dead pixel makes it too low, which only brings the result nearer to Brovey's.
    """
    lowest = torch.full((scene.hs.bands,), math.inf, dtype=torch.float64)
    for tile in scene.coarse_tiles(scene.mtf_hs, control=control):
        if bool(tile.mask.any()):
            lowest = torch.minimum(lowest, tile.hs[:, tile.mask].amin(dim=1).double().cpu())
    return lowest
