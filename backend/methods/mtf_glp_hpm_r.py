# SPDX-License-Identifier: GPL-2.0-or-later
"""MTF-GLP-HPM-R: high-pass modulation with the guide equalised by regression on the fine grid."""

from __future__ import annotations

from ..control import Control
from ..scene import Scene
from .full_scale import full_scale_moments
from .injection import gain_ridge, ridge_solve
from .mtf_glp_hpm import MtfGlpHpm


class MtfGlpHpmR(MtfGlpHpm):
    """Regression-based high-pass modulation (Vivone, Restaino and Chanussot, IEEE TGRS 56(2), 2018).

    `fused = h (p + c) / (l + c)`, `c = mean(h) / w - mean(p)`, with w the regression of the interpolated band h on
    the interpolated low-pass guide l, both on the fine grid. Multiplied through by w this is modulation by the
    synthetic guide `mean(h) + w (p - mean(p))`, which also holds for w = 0 and for several guide bands.
    `mtf-glp-hpm` differs only in where it regresses: on the coarse grid, before interpolation.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn each band's regression on the low-pass guide on the fine grid."""
        moments = full_scale_moments(scene, control)
        self.gains = ridge_solve(moments.low_low, moments.hs_low.T, gain_ridge(scene.guide.bands)).T
        self.hs_mean, self.guide_mean = moments.hs_mean, moments.guide_mean
        self.correlation = scene.statistics(scene.mtf_hs, control).correlation().abs().amax(dim=1)
