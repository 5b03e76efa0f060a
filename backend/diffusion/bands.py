# SPDX-License-Identifier: GPL-2.0-or-later
"""The low-rank model of the HS image on a few of its own bands: which bands, and what the others are of them.

Four rules select the bands; which one the published MPSRNet-Diff uses is not public ("PCA-based"). Everything is
computed from the HS image's covariance; no ground truth is needed to compare the rules (`unexplained`).

Sources: equal interval, Rui et al., arXiv 2305.10925; pivoted QR of the principal directions, after Pang et al.
(HIR-Diff), CVPR 2024; MVPCA, Chang et al., IEEE TGRS 37(6), 1999.
"""

from __future__ import annotations

import torch
from scipy.linalg import qr
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError

RULES = ("pca", "rrqr", "mvpca", "equal")
RIDGE = 1e-6
"""Ridge of the loadings, relative to the mean variance of the selected bands."""


def select_bands(covariance: Tensor, count: int, rule: str = "pca") -> list[int]:
    """Return the bands that stand for the image.

    Args:
        covariance: `[bands, bands]` of the HS image, in its units squared.
        count: how many.
        rule: "pca": for each principal component the band that loads highest on it, and "mvpca": the bands of
            highest priority (variance kept by the components), both at least bands / (4 count) apart; "rrqr":
            pivoted QR of the principal directions; "equal": evenly spread.

    Raises:
        HyperSharpError: unknown rule, or more bands than there are.
    """
    bands = len(covariance)
    if rule not in RULES:
        raise HyperSharpError(
            f"unknown band selection {rule!r}", f"use one of {', '.join(RULES)}", ErrorCode.USAGE
        )
    if not 1 <= count <= bands:
        raise HyperSharpError(
            f"the prior cannot stand on {count} of {bands} bands", f"use 1 to {bands}", ErrorCode.USAGE
        )
    if rule == "equal":
        step = (bands + 1) // (count + 1)
        return [(t + 1) * step - 1 for t in range(count)]
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    values, vectors = values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]
    if rule == "rrqr":
        _, _, order = qr(vectors.T.numpy(), mode="economic", pivoting=True)
        return [int(b) for b in order[:count]]
    apart = bands // (4 * count)
    if rule == "mvpca":
        priority = (vectors**2 * values).sum(dim=1)
        scores = [priority] * count
    else:
        scores = list((vectors.abs() * values.sqrt()).T)
    chosen: list[int] = []
    for score in scores:
        chosen.append(_highest(score, chosen, apart))
    return chosen


def _highest(score: Tensor, chosen: list[int], apart: int) -> int:
    """Return the band of the highest score at least `apart` away from those chosen (nearer where none is left)."""
    index = torch.arange(len(score))
    for distance in range(max(1, apart), 0, -1):
        free = torch.ones(len(score), dtype=torch.bool)
        for band in chosen:
            free &= (index - band).abs() >= distance
        if bool(free.any()):
            return int(torch.where(free, score, -torch.inf).argmax())
    raise ValueError("no band is left")


def band_loadings(covariance: Tensor, bands: list[int]) -> Tensor:
    """Return what every band is of the selected ones, `[bands, selected]` float64: ridge regression.

    Args:
        covariance: `[bands, bands]` of the HS image.
        bands: the selected ones.
    """
    c = covariance.to(torch.float64)
    system = c[bands][:, bands]
    ridge = RIDGE * float(system.diagonal().mean()) + 1e-300
    return torch.linalg.solve(system + ridge * torch.eye(len(bands), dtype=c.dtype), c[bands]).T


def unexplained(covariance: Tensor, bands: list[int]) -> float:
    """Return the residual of the low-rank model on the HS image itself: |Y - E Y_B| / |Y|, both less their mean."""
    c = covariance.to(torch.float64)
    loadings = band_loadings(c, bands)
    cross = loadings @ c[bands]
    left = c - cross - cross.T + loadings @ c[bands][:, bands] @ loadings.T
    return float((left.trace().clamp_min(0) / c.trace().clamp_min(1e-300)).sqrt())
