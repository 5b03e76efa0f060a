# SPDX-License-Identifier: GPL-2.0-or-later
"""GLP-HS: hypersharpening with the Laplacian pyramid."""

from __future__ import annotations

from ..control import Control
from ..scene import Scene
from .hypersharpening import synthetic_guide_gains
from .mtf_glp import MtfGlp


class GlpHs(MtfGlp):
    """Hypersharpening by addition (Selva et al., IEEE JSTARS 8(6), 2015; GLP-HS: Yokoya et al., GRSM 5(2), 2017).

    Each HS band gets a synthetic guide s_b, the combination of the guide's bands that fits it best on the coarse
    grid, and from it the detail beyond the HS sensor's MTF: `fused_b = U(hs_b) + s_b - U(D(s_b))`.

    Option `fit`: "assign" takes the one guide band that fits best; "level" is the published fit, which makes
    this `mtf-glp`; "detail", the default, fits what band and guide have beyond their own low-pass versions (0.3
    to 0.5 dB more on the mean of docs/benchmarks.md).
    """

    defaults = {"fit": "detail"}

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the weights of the synthetic guides, `[bands, guide bands]`."""
        super().fit(scene, control)
        self.gains = synthetic_guide_gains(scene, control, self.parameters["fit"])
