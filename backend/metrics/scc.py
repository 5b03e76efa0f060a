# SPDX-License-Identifier: GPL-2.0-or-later
"""SCC: spatial correlation coefficient."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import RELATIVE_ZERO, FullReferenceMetric, MetricValue, PairTile
from .moments import BandMoments, BandState, add_bands, band_result
from .windows import band_groups, core_windows, slide

NO_WINDOW = "no 3 x 3 window lies wholly on valid pixels"


class SCC(FullReferenceMetric):
    """Pearson's coefficient of the Laplacian-filtered bands (8 in the middle, -1 around), mean over bands.

    The high-pass filter and the correlation of Zhou, Civco and Silander, with the true band in the place of
    their PAN. One coefficient a band over the whole scene; pixels whose 3 x 3 neighbourhood leaves the image or
    touches a masked pixel are left out.
    """

    key = "SCC"
    variant = "3 x 3 Laplacian of both, Pearson's coefficient over the scene, mean over bands"
    better = "higher"
    range = "-1 to 1 (identical detail)"
    source = "Zhou, Civco and Silander, Int. J. Remote Sens. 19(4), 1998"
    halo = 1

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every tile."""
        self._moments: Optional[BandMoments] = None
        self._size: Optional[Tensor] = None
        self._any_pixel = False

    def update_tile(self, tile: PairTile) -> None:
        """Add a tile."""
        self._any_pixel = self._any_pixel or bool(tile.mask_core.any())
        cover, _, counts = core_windows(tile.mask, tile.core, 1, 1)
        if not bool(counts.any()):
            return
        mask = tile.mask[cover]
        parts, sizes = [], []
        for group in band_groups(tile.bands, counts.numel(), tile.fused.device):
            pair = [
                torch.where(mask, image[(group, *cover)], torch.zeros_like(image[:1, :1, :1]))
                for image in (tile.fused, tile.reference)
            ]
            sizes.append(torch.stack([image.abs().amax(dim=(1, 2)).to(torch.float64) for image in pair]))
            total: Optional[BandMoments] = None
            for chunk in PairTile(laplacian(pair[0]), laplacian(pair[1]), counts).chunks():
                total = add_bands(total, chunk)
            if total is not None:
                parts.append(total)
        merged, size = parts[0].joined(parts[1:]), torch.cat(sizes, dim=1)
        self._moments = merged if self._moments is None else self._moments.merged(merged)
        self._size = size if self._size is None else torch.maximum(self._size, size)

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's coefficient."""
        m = self._moments
        if not self._any_pixel:
            return band_result(None, None)
        if m is None or self._size is None:
            return MetricValue(None, NO_WINDOW)
        # A Laplacian of rounding errors is no detail.
        flat_f, flat_r = (
            ss <= m.count * (RELATIVE_ZERO * size) ** 2 for ss, size in zip((m.ss_f, m.ss_r), self._size)
        )
        product = torch.where(flat_f, torch.ones_like(m.ss_f), m.ss_f).sqrt() * m.ss_r.sqrt()
        values = torch.where(flat_f, torch.zeros_like(m.cross), (m.cross / product).clamp(-1, 1))
        state = BandState(True, ~torch.isfinite(m.ss_r), torch.zeros_like(flat_r))
        return band_result(
            state,
            values,
            skipped=((flat_r, "no detail in the reference"),),
            counted=((flat_f, "the fused band has no detail, counted as 0"),),
        )


def laplacian(image: Tensor) -> Tensor:
    """Return `9 x - sum over 3 x 3` of `[bands, rows, cols]`, in float64, without the border."""
    image = image.to(torch.float64)
    return 9 * image[:, 1:-1, 1:-1] - slide(image, (1.0, 1.0, 1.0))
