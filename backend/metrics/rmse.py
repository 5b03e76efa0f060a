# SPDX-License-Identifier: GPL-2.0-or-later
"""RMSE: root of the mean squared error."""

from __future__ import annotations

import torch

from .base import MetricValue
from .moments import BandwiseMetric, band_result


class RMSE(BandwiseMetric):
    """`sqrt(mean over all values of (fused - reference)^2)` in the data's own unit (Loncan et al. 2015)."""

    key = "RMSE"
    variant = "root of the mean over all bands and pixels, in the data's unit"
    better = "lower"
    range = "0 (identical) and up, in the data's unit"
    source = "Loncan et al., IEEE GRSM 3(3), 2015"

    def compute(self) -> MetricValue:
        """Return the RMSE over all values and each band's."""
        m = self.moments
        if m is None:
            return band_result(None, None)
        values = torch.sqrt(m.sse / m.count.clamp(min=1))
        return band_result(m.state(), values, combine=lambda rmse: rmse.square().mean().sqrt())
