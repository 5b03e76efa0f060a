# SPDX-License-Identifier: GPL-2.0-or-later
"""SFIM: smoothing filter-based intensity modulation."""

from __future__ import annotations

from .modulation import GuideModulation


class SFIM(GuideModulation):
    """Smoothing filter-based intensity modulation (Liu, Int. J. Remote Sens. 21(18), 2000, eq. 7).

    The smoothing filter is the mean over each HS pixel's own block of guide pixels.
    """

    def filter_gain(self, mtf_hs: float) -> float | None:
        """Return None: block means."""
        return None
