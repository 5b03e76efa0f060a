# SPDX-License-Identifier: GPL-2.0-or-later
"""SAM: spectral angle mapper."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import FullReferenceMetric, MetricValue, PairTile
from .moments import NO_PIXELS


def spectral_angle(fused: Tensor, reference: Tensor) -> Tensor:
    """Return each pixel's spectral angle in degrees, `[rows, cols]`; NaN where a spectrum is zero.

    The angle is `2 atan2(|u - v|, |u + v|)` of the unit spectra (Kahan), equal to the textbook's arccos of
    their product, but exact for small angles too: arccos in float32 gives 0.02 degrees for equal spectra.

    Args:
        fused: `[bands, rows, cols]`, any unit.
        reference: the true spectra, same shape.
    """
    # Spectra go into unit range first: no overflow of squares, whatever the data's scale.
    scale_f, scale_r = fused.abs().amax(dim=0), reference.abs().amax(dim=0)
    empty = (scale_f == 0) | (scale_r == 0)
    u = fused / scale_f.masked_fill(empty, 1)
    v = reference / scale_r.masked_fill(empty, 1)
    u /= u.square().sum(dim=0).sqrt_().masked_fill_(empty, 1)
    v /= v.square().sum(dim=0).sqrt_().masked_fill_(empty, 1)
    apart = (u - v).square_().sum(dim=0).sqrt_()
    together = u.add_(v).square_().sum(dim=0).sqrt_()
    angle = torch.rad2deg(2 * torch.atan2(apart.to(torch.float64), together.to(torch.float64)))
    return angle.masked_fill_(empty, float("nan"))


class SAM(FullReferenceMetric):
    """Mean over pixels of the angle between fused and true spectrum, in degrees.

    Pixels where either spectrum is zero have no angle and are left out, with their count in the reason.
    """

    key = "SAM"
    variant = "mean over pixels, degrees, zero spectra left out"
    better = "lower"
    range = "0 to 180 degrees"
    source = (
        "Kruse et al., Remote Sens. Environ. 44, 1993; Yuhas, Goetz and Boardman, JPL AVIRIS Workshop, 1992"
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every tile."""
        self._sum: Tensor | float = 0.0
        self._counts: Tensor | None = None

    def update_tile(self, tile: PairTile) -> None:
        """Add a chunk of a tile."""
        mask = tile.mask_core
        fused, reference = tile.fused_core, tile.reference_core
        if not bool(mask.all()):
            fused, reference = fused[:, mask][:, None], reference[:, mask][:, None]
            mask = mask[mask][None]
        if mask.numel() == 0:
            return
        angle = spectral_angle(fused, reference)
        empty = (fused == 0).all(dim=0) | (reference == 0).all(dim=0)
        broken = ~torch.isfinite(angle) & ~empty
        good = ~(empty | broken)
        self._sum = self._sum + torch.where(good, angle, torch.zeros_like(angle)).sum()
        counts = torch.stack([good.sum(), empty.sum(), broken.sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> MetricValue:
        """Return the mean angle in degrees."""
        if self._counts is None:
            return MetricValue(None, NO_PIXELS)
        good, empty, broken = (int(n) for n in self._counts)
        if broken:
            return MetricValue(None, f"{broken} valid pixels hold NaN or infinity")
        if not good:
            return MetricValue(None, "every valid pixel has a zero spectrum")
        note = f"{empty} pixels with a zero spectrum left out" if empty else None
        return MetricValue(float(self._sum) / good, note)
