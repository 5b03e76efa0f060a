# SPDX-License-Identifier: GPL-2.0-or-later
"""MTF-GLP-HPM: generalised Laplacian pyramid with MTF-matched filter and high-pass modulation."""

from __future__ import annotations

from .modulation import GuideModulation


class MtfGlpHpm(GuideModulation):
    """MTF-matched Laplacian pyramid with high-pass modulation.

    Aiazzi, Alparone, Baronti, Garzelli and Selva, PE&RS 72(5), 2006 (MTF-matched filter); Vivone, Restaino,
    Dalla Mura, Licciardi and Chanussot, IEEE GRSL 11(5), 2014 (modulation with an equalised guide).
    """

    def filter_gain(self, mtf_hs: float) -> float | None:
        """Return the HS sensor's own MTF gain at Nyquist."""
        return mtf_hs
