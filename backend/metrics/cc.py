# SPDX-License-Identifier: GPL-2.0-or-later
"""CC: cross-correlation."""

from __future__ import annotations

import torch

from .base import RELATIVE_ZERO, MetricValue
from .moments import BandwiseMetric, band_result


class CC(BandwiseMetric):
    """Pearson's coefficient of each band over all pixels, mean over bands (Loncan et al. 2015)."""

    key = "CC"
    variant = "mean over bands of Pearson's coefficient"
    better = "higher"
    range = "-1 to 1 (linear)"
    source = "Loncan et al., IEEE GRSM 3(3), 2015"

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's value."""
        m = self.moments
        if m is None:
            return band_result(None, None)
        flat = m.ss_f <= m.count * (RELATIVE_ZERO * m.mean_f) ** 2
        product = torch.where(flat, torch.ones_like(m.ss_f), m.ss_f).sqrt() * m.ss_r.sqrt()
        values = torch.where(flat, torch.zeros_like(m.cross), (m.cross / product).clamp(-1, 1))
        return band_result(m.state(), values, counted=((flat, "the fused band is constant, counted as 0"),))
