# SPDX-License-Identifier: GPL-2.0-or-later
"""AWLP: additive wavelet luminance proportional."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..control import Control
from ..degradation import Range, masked_separable
from ..scene import Scene, Tile
from .injection import BAND_CHUNK, MODULATION_CEILING, MODULATION_FLOOR
from .mtf_glp import MtfGlp

PROPORTIONAL = 0.5
"""Least cosine between a band and the luminance, over the scene, for the band to be treated as a share of it."""


class Awlp(MtfGlp):
    """Additive wavelet luminance proportional (Otazu, Gonzalez-Audicana, Fors and Nunez, IEEE TGRS 43(10), 2005).

    The detail is the sum of the guide's a trous wavelet planes with the cubic B-spline filter, and each band gets
    it in proportion to its share of the luminance L, the mean of the HS bands:
    `fused = h_b + h_b / U(L) detail`, the guide being equalised to L.

    The equalisation is each band's own regression g_b on the guide as the HS sensor sees it (Alparone, Garzelli and
    Vivone, IEEE TGRS 55(8), 2017, match there too): `fused = h_b + (h_b / U(L)) (g_b / s_b) detail`, with s_b the
    band's usual share, its least-squares slope on L through the origin. For bands proportional to L this is the
    published form; a band that does not follow the guide gets nothing. Where the luminance is too small or
    negative for a ratio, or a band is no multiple of it at all, `g_b detail` is added.
    """

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn each band's regression on the degraded guide, and its usual share of the luminance."""
        super().fit(scene, control)
        statistics = scene.statistics(scene.mtf_hs, control)
        average = torch.full_like(statistics.hs_mean, 1.0 / statistics.bands)
        self.luminance_mean = float(average @ statistics.hs_mean)
        # Second moments about 0: of each band with L, of L and of each band.
        cross = statistics.hs_covariance @ average + statistics.hs_mean * self.luminance_mean
        power = float(average @ statistics.hs_covariance @ average) + self.luminance_mean**2
        own = statistics.hs_covariance.diagonal() + statistics.hs_mean**2
        proportional = (cross > PROPORTIONAL * (own * power).sqrt()) & (self.luminance_mean > 0)
        inverse_share = torch.where(proportional, power / cross.where(proportional, torch.ones(())), 0.0)
        self.relative_gains = inverse_share[:, None] * self.gains
        self.additive_bands = torch.nonzero(~proportional)[:, 0]

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: interpolated HS plus its share of the guide's wavelet planes."""
        upsampled = tile.upsample(tile.hs)
        detail = (tile.guide_core - guide_approximation(tile)).flatten(1)
        luminance = tile.upsample(tile.hs.mean(dim=0)).reshape(1, -1)
        safe = luminance > MODULATION_FLOOR * max(self.luminance_mean, 0.0)
        relative = torch.where(safe, detail / luminance, 0.0)
        flat = upsampled.view(len(upsampled), -1)
        gains, relative_gains = self.gains.to(flat), self.relative_gains.to(flat)
        one = torch.ones((), dtype=flat.dtype, device=flat.device)
        for first in range(0, len(flat), BAND_CHUNK):
            part = slice(first, first + BAND_CHUNK)
            flat[part] *= torch.addmm(one, relative_gains[part], relative).clamp_(
                1 / MODULATION_CEILING, MODULATION_CEILING
            )
        if not bool(safe.all()):
            flat.addmm_(gains, torch.where(safe, 0.0, detail))
        if len(self.additive_bands):
            bands = self.additive_bands.to(flat.device)
            flat[bands] += gains[bands] @ torch.where(safe, detail, 0.0)
        return upsampled


def guide_approximation(tile: Tile) -> Tensor:
    """Return the guide's a trous approximation on the tile's own pixels, `[guide bands, rows, cols]`."""
    height, width = (size * tile.ratio for size in tile.scene_coarse)
    low, _ = masked_separable(
        spline_matrix(tile.rows, tile.fine_rows, tile.ratio, height),
        spline_matrix(tile.cols, tile.fine_cols, tile.ratio, width),
        tile.guide,
        tile.guide_mask,
    )
    return low


def spline_kernel(ratio: int) -> Tensor:
    """Return the a trous approximation filter of a ratio as one kernel, float64, 4 (ratio - 1) + 1 taps, sum 1.

    One level of the cubic B-spline filter is (1, 4, 6, 4, 1) / 16 = (1 + z)^4 / 16, the next has its taps twice as
    far apart; n levels multiply to (1 + z + ... + z^(2^n - 1))^4 / 16^n: four box filters of 2^n pixels. Four boxes
    of `ratio` pixels are that filter at powers of two, and its natural form at 3, 5, 6, ...
    """
    box = torch.full((1, 1, ratio), 1.0 / ratio, dtype=torch.float64)
    kernel = box
    for _ in range(3):
        kernel = torch.nn.functional.conv1d(kernel, box, padding=ratio - 1)
    return kernel[0, 0]


@lru_cache(maxsize=64)
def spline_matrix(fine: Range, source: Range, ratio: int, fine_size: int) -> Tensor:
    """Return the filter of `spline_kernel` as `[len(fine), len(source)]`; the scene's border is replicated."""
    kernel = spline_kernel(ratio)
    reach = 2 * (ratio - 1)
    indices = torch.arange(*fine)[:, None] + torch.arange(-reach, reach + 1)[None, :]
    indices = indices.clamp(0, fine_size - 1) - source[0]
    matrix = torch.zeros(indices.shape[0], source[1] - source[0], dtype=torch.float64)
    return matrix.scatter_add_(1, indices, kernel.expand(indices.shape)).to(torch.float32)
