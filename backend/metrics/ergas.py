# SPDX-License-Identifier: GPL-2.0-or-later
"""ERGAS: relative dimensionless global error of synthesis."""

from __future__ import annotations

import torch

from ..errors import HyperSharpError
from .base import RELATIVE_ZERO, MetricValue
from .moments import BandwiseMetric, band_result


class ERGAS(BandwiseMetric):
    """`100 / ratio * sqrt(mean over bands of (RMSE_b / mean_b)^2)`, mean_b of the reference (Wald 2002).

    Args:
        ratio: coarse over fine pixel size, above 1 (Wald writes its inverse h / l; swapping them multiplies
            the index by the square of the ratio).
    """

    key = "ERGAS"
    variant = "100 / ratio, band means of the reference"
    better = "lower"
    range = "0 (identical) and up"
    source = "Wald, Data Fusion: Definitions and Architectures, 2002"

    def __init__(self, ratio: float) -> None:
        if not ratio >= 1:
            raise HyperSharpError(
                f"ERGAS needs the ratio coarse over fine, not {ratio}", "give 4, not 1/4, for 40 m and 10 m"
            )
        self.ratio = float(ratio)
        super().__init__()

    def compute(self) -> MetricValue:
        """Return the index over bands; each band's value is `100 / ratio * RMSE_b / |mean_b|`."""
        m = self.moments
        if m is None:
            return band_result(None, None)
        pixels = m.count.clamp(min=1)
        size = torch.sqrt(m.ss_r / pixels + m.mean_r**2)
        zero = m.mean_r.abs() <= RELATIVE_ZERO * size
        mean = torch.where(zero, torch.ones_like(m.mean_r), m.mean_r.abs())
        values = 100 / self.ratio * torch.sqrt(m.sse / pixels) / mean
        skipped = ((zero, "mean 0 in the reference"),)
        return band_result(m.state(), values, skipped, combine=lambda v: v.square().mean().sqrt())
