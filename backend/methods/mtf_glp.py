# SPDX-License-Identifier: GPL-2.0-or-later
"""MTF-GLP: generalised Laplacian pyramid with MTF-matched filter, additive injection."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..control import Control
from ..scene import Scene, Tile
from .base import FusionMethod
from .injection import add_detail, guide_gains, summary


class MtfGlp(FusionMethod):
    """MTF-matched Laplacian pyramid (Aiazzi, Alparone, Baronti, Garzelli and Selva, PE&RS 72(5), 2006).

    `fused = U(hs) + gains (guide - U(D(guide)))`, D the HS sensor's MTF and decimation, U the interpolation. The
    gains are each band's regression on the degraded guide over the scene (cov(hs, D(guide)) cov(D(guide))^-1, the
    paper's context-based decision with the scene as its window), so a band that does not follow the guide gets no
    detail. With several guide bands this is the regression on all of them at once. Any real values and units.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn each band's regression on the degraded guide, `[bands, guide bands]`."""
        statistics = scene.statistics(scene.mtf_hs, control)
        self.gains = guide_gains(statistics)
        self.correlation = statistics.correlation().abs().amax(dim=1)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS plus gains times the guide's detail."""
        detail = tile.guide_core - tile.guide_lowpass(tile.mtf_hs)
        return add_detail(tile.upsample(tile.hs), self.gains, detail)

    def describe(self) -> dict[str, Any]:
        """Return each band's best correlation with a guide band."""
        return {"guide_correlation": summary(self.correlation, 3)}
