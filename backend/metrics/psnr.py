# SPDX-License-Identifier: GPL-2.0-or-later
"""PSNR: peak signal-to-noise ratio."""

from __future__ import annotations

import torch

from .base import MetricValue
from .moments import BandwiseMetric, band_result


class PSNR(BandwiseMetric):
    """`10 log10(peak_b^2 / MSE_b)` in dB, mean over bands; the peak is each reference band's maximum.

    The form of the HS fusion literature (Yokoya et al., IEEE GRSM 5(2), 2017). The same image may score 8 dB
    more with the cube's maximum as the peak and 26 dB more with 65535, so the peak belongs in the label.
    """

    key = "PSNR"
    variant = "mean over bands of 10 log10(peak^2 / MSE), peak = the reference band's maximum"
    better = "higher"
    range = "dB, unbounded (identical bands are left out)"
    source = "Yokoya, Grohnfeldt and Chanussot, IEEE GRSM 5(2), 2017"

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's value."""
        m = self.moments
        if m is None:
            return band_result(None, None)
        mse = m.sse / m.count.clamp(min=1)
        identical = mse == 0
        values = 10 * torch.log10(m.max_r**2 / torch.where(identical, torch.ones_like(mse), mse))
        skipped = (
            (m.max_r <= 0, "the reference has no positive peak"),
            (identical, "identical to the reference, PSNR is unbounded"),
        )
        return band_result(m.state(), values, skipped)
