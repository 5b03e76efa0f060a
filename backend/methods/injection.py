# SPDX-License-Identifier: GPL-2.0-or-later
"""What component substitution and multiresolution analysis share: regressions and ways to inject detail.

Every method here writes a fused band as its interpolation plus (or times) what the guide has beyond a low
resolution version of itself, `detail = guide - low`. Component substitution takes `low` from the HS bands (an
intensity), multiresolution analysis from the guide (a low-pass filter). Vivone et al., IEEE TGRS 53(5), 2015.
"""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor

from ..scene import SceneStatistics

RIDGE = 1e-3
"""Ridge of the intensity regression, relative to unit variance: hundreds of HS bands are nearly collinear."""
GAIN_RIDGE = 1e-3
"""Ridge of the injection gains of several guide bands, relative to unit variance: nearly collinear guide bands
would otherwise get large gains of opposite sign, which amplify the guide's noise (docs/benchmarks.md)."""
MODULATION_FLOOR = 0.1
"""Modulation needs a denominator of at least this share of the band's mean; below it, detail is added."""
MODULATION_CEILING = 4.0
"""Largest factor by which modulation scales a pixel: more is a shadow's noise, not detail."""
BAND_CHUNK = 16
"""Bands worked on at once, so that intermediate results stay in the processor's cache."""


def ridge_solve(covariance: Tensor, cross: Tensor, relative: float) -> Tensor:
    """Return the coefficients of a ridge regression from second moments.

    Args:
        covariance: `[n, n]` of the predictors.
        cross: `[n, k]` of predictors and targets.
        relative: ridge in units of each predictor's variance.

    Returns:
        `[n, k]`; a predictor without variance gets 0.
    """
    variance = covariance.diagonal()
    alive = variance > 1e-12 * variance.max().clamp_min(1e-300)
    scale = torch.where(alive, variance, torch.ones_like(variance)).rsqrt() * alive
    correlation = covariance * scale[:, None] * scale[None, :]
    system = correlation + torch.diag(torch.where(alive, relative, 1.0).to(covariance))
    return torch.linalg.solve(system, cross * scale[:, None]) * scale[:, None]


def gain_ridge(guide_bands: int) -> float:
    """Return the ridge of injection gains: none for one guide band, which cannot be collinear with another."""
    return GAIN_RIDGE if guide_bands > 1 else 0.0


def intensity_weights(statistics: SceneStatistics, relative: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Regress the degraded guide on the HS bands.

    Returns:
        Weights `[guide bands, bands]` and offsets `[guide bands]` (float64): intensity = weights hs + offset.
    """
    weights = ridge_solve(statistics.hs_covariance, statistics.cross_covariance, relative).T
    return weights, statistics.guide_mean - weights @ statistics.hs_mean


def nonnegative_intensity_weights(statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
    """As `intensity_weights`, with no negative weight (non-negative least squares on the second moments)."""
    covariance = statistics.hs_covariance
    ridge = 1e-9 * covariance.diagonal().max().clamp_min(1e-300)
    root = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    target = torch.linalg.solve_triangular(root, statistics.cross_covariance, upper=False)
    rows = [nnls(root.T.numpy(), target[:, j].numpy())[0] for j in range(target.shape[1])]
    weights = torch.stack([torch.from_numpy(row) for row in rows]).to(covariance)
    return weights, statistics.guide_mean - weights @ statistics.hs_mean


def intensity_gains(statistics: SceneStatistics, weights: Tensor) -> Tensor:
    """Return the injection gains `[bands, guide bands]`: cov(hs, I) cov(I, I)^-1 (Aiazzi et al. 2007, eq. 8).

    For several guide bands this is the multivariate regression of the HS bands on the intensities.
    """
    cross = statistics.hs_covariance @ weights.T
    covariance = weights @ cross
    return ridge_solve(covariance, cross.T, gain_ridge(len(covariance))).T


def guide_gains(statistics: SceneStatistics) -> Tensor:
    """Return the gains `[bands, guide bands]` of regressing each HS band on the degraded guide.

    With several guide bands this synthesises a guide for each HS band (hypersharpening, Selva et al. 2015).
    """
    covariance = statistics.guide_covariance
    return ridge_solve(covariance, statistics.cross_covariance.T, gain_ridge(len(covariance))).T


def add_detail(upsampled: Tensor, gains: Tensor, detail: Tensor) -> Tensor:
    """Return `upsampled + gains detail`, in place.

    Args:
        upsampled: `[bands, rows, cols]`, overwritten.
        gains: `[bands, guide bands]`.
        detail: `[guide bands, rows, cols]`.
    """
    flat = upsampled.view(len(upsampled), -1)
    flat.addmm_(gains.to(flat), detail.reshape(len(detail), -1).to(flat))
    return upsampled


def modulate(
    upsampled: Tensor, gains: Tensor, guide: Tensor, low: Tensor, hs_mean: Tensor, guide_mean: Tensor
) -> Tensor:
    """Scale each band by its synthetic guide over that guide's low-resolution version, in place.

    The synthetic guide of band b is `hs_mean_b + gains_b (guide - guide_mean)`: a band that does not follow the
    guide gets a flat one and is left alone. Where the denominator is small the same detail is added instead.

    Args:
        upsampled: `[bands, rows, cols]`, overwritten.
        gains: `[bands, guide bands]`.
        guide, low: `[guide bands, rows, cols]`.
        hs_mean: `[bands]`. guide_mean: `[guide bands]`.
    """
    bands = len(upsampled)
    flat = upsampled.view(bands, -1)
    gains, mean = gains.to(flat), hs_mean.to(flat)[:, None]
    offset = guide_mean.to(flat)[:, None]
    fine = guide.reshape(len(guide), -1).to(flat) - offset
    coarse = low.reshape(len(low), -1).to(flat) - offset
    for first in range(0, bands, BAND_CHUNK):
        part = slice(first, min(bands, first + BAND_CHUNK))
        denominator = torch.addmm(mean[part], gains[part], coarse)
        numerator = torch.addmm(mean[part], gains[part], fine)
        floor = MODULATION_FLOOR * mean[part]
        # A band whose mean is not positive (logarithms, anomalies) has no ratio: its detail is added.
        if bool((floor > 0).all()) and bool((denominator.amin(dim=1, keepdim=True) > floor).all()):
            flat[part].mul_(numerator.div_(denominator).clamp_(0.0, MODULATION_CEILING))
        else:
            safe = (denominator > floor) & (floor > 0)
            factor = (numerator / denominator).clamp_(0.0, MODULATION_CEILING)
            flat[part] = torch.where(safe, flat[part] * factor, flat[part] + (numerator - denominator))
    return upsampled


def summary(values: Tensor, digits: int = 4) -> list[float]:
    """Return a short vector as rounded numbers for the report."""
    return [round(float(v), digits) for v in values.reshape(-1)]
