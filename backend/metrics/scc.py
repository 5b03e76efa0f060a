# SPDX-License-Identifier: GPL-2.0-or-later
"""SCC: spatial correlation coefficient."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .base import RELATIVE_ZERO, FullReferenceMetric, MetricValue, PairTile
from .moments import BandState, band_result
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
        self._sums: Optional[Tensor] = None
        self._size: Optional[Tensor] = None
        self._windows = 0
        self._any_pixel = False

    def update_tile(self, tile: PairTile) -> None:
        """Add a tile."""
        self._any_pixel = self._any_pixel or bool(tile.mask_core.any())
        cover, _, counts = core_windows(tile.mask, tile.core, 1, 1)
        number = int(counts.sum())
        if number == 0:
            return
        mask = tile.mask[cover]
        sums, sizes = [], []
        for group in band_groups(tile.bands, counts.numel(), tile.fused.device):
            pair = [
                torch.where(mask, image[(group, *cover)], torch.zeros_like(image[:1, :1, :1]))
                for image in (tile.fused, tile.reference)
            ]
            sizes.append(torch.stack([image.abs().amax(dim=(1, 2)).to(torch.float64) for image in pair]))
            f, r = (laplacian(image).masked_fill_(~counts, 0).flatten(1) for image in pair)
            # The mean of a Laplacian is near 0: sums of squares lose nothing beside it.
            products = [
                f.sum(dim=1),
                r.sum(dim=1),
                *((x * y).sum(dim=1) for x, y in ((f, f), (r, r), (f, r))),
            ]
            sums.append(torch.stack(products))
        total, size = torch.cat(sums, dim=1), torch.cat(sizes, dim=1)
        self._sums = total if self._sums is None else self._sums + total
        self._size = size if self._size is None else torch.maximum(self._size, size)
        self._windows += number

    def compute(self) -> MetricValue:
        """Return the mean over bands and each band's coefficient."""
        if not self._any_pixel:
            return band_result(None, None)
        if self._sums is None or self._size is None:
            return MetricValue(None, NO_WINDOW)
        n = self._windows
        f, r, ff, rr, fr = self._sums
        ss_f, ss_r, cross = ff - f * f / n, rr - r * r / n, fr - f * r / n
        # A Laplacian of rounding errors is no detail.
        flat_f, flat_r = (ss <= n * (RELATIVE_ZERO * size) ** 2 for ss, size in zip((ss_f, ss_r), self._size))
        product = torch.where(flat_f, torch.ones_like(ss_f), ss_f).sqrt() * ss_r.sqrt()
        values = torch.where(flat_f, torch.zeros_like(cross), (cross / product).clamp(-1, 1))
        state = BandState(True, ~torch.isfinite(ss_r), torch.zeros_like(flat_r))
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
