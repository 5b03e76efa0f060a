# SPDX-License-Identifier: GPL-2.0-or-later
"""MTF-GLP-FS: MTF-matched Laplacian pyramid with injection gains estimated at full scale."""

from __future__ import annotations

from ..control import Control
from ..scene import Scene
from .full_scale import full_scale_moments
from .injection import gain_ridge, ridge_solve
from .mtf_glp import MtfGlp


class MtfGlpFs(MtfGlp):
    """MTF-GLP with full-scale regression gains (Vivone, Restaino and Chanussot, IEEE TIP 27(7), 2018).

    The gains make the *fused* band's regression on the guide the one that was injected: from
    `F = h + W (g - l)` and `cov(F, g) = W cov(g, g)` follows `W cov(l, g) = cov(h, g)`, with h = U(hs),
    l = U(D(guide)), all on the fine grid. With several guide bands W is a matrix; one band is the published case.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the gains `[bands, guide bands]` from moments on the fine grid."""
        moments = full_scale_moments(scene, control)
        self.gains = ridge_solve(moments.low_guide.T, moments.hs_guide.T, gain_ridge(scene.guide.bands)).T
        self.correlation = scene.statistics(scene.mtf_hs, control).correlation().abs().amax(dim=1)
