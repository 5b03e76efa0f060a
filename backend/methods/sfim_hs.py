# SPDX-License-Identifier: GPL-2.0-or-later
"""SFIM-HS: hypersharpening with intensity modulation."""

from __future__ import annotations

from ..control import Control
from ..scene import Scene
from .hypersharpening import synthetic_guide_gains
from .mtf_glp_hpm import MtfGlpHpm


class SfimHs(MtfGlpHpm):
    """Hypersharpening by modulation (Selva et al., IEEE JSTARS 8(6), 2015; SFIM-HS: Yokoya et al., GRSM 5(2), 2017).

    Each HS band gets a synthetic guide s_b, the combination of the guide's bands that fits it best on the coarse
    grid, and is modulated by it: `fused_b = U(hs_b) s_b / U(D(s_b))`. The smoothing filter is the HS sensor's MTF
    (in `sfim` it is the mean over each HS pixel's block).

    Option `fit`: "assign" takes the one guide band that fits best; "level" is the published fit, which makes
    this `mtf-glp-hpm`; "detail", the default, fits what band and guide have beyond their own low-pass versions.
    """

    defaults = {"fit": "detail"}

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the weights of the synthetic guides, `[bands, guide bands]`."""
        super().fit(scene, control)
        self.gains = synthetic_guide_gains(scene, control, self.parameters["fit"])
