# SPDX-License-Identifier: GPL-2.0-or-later
"""How far the closed form can be trusted: the covariance of what the guide does not say of the base's detail.

One scale down both images are known: there, the base's detail is regressed on the guide's, and what is left stands
for the closed form's error one scale up (the scale invariance that Wald's protocol assumes too).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..degradation import degrade, interpolate

OUTLIERS = 3.0
"""Robust standard deviations at which an error counts no more: single roofs would hide all the rest."""
MIN_PIXELS = 64
FLOOR = 1e-5
"""Least variance of the error, base in [0, 1]."""
BLIND = 0.3
"""Share of the base's own variance that is taken as error where the scene is too small to say."""


class ErrorStatistics:
    """Collects what the guide leaves of the base's detail, from one window of the coarse scene or from many.

    Args:
        ratio: fine pixels per coarse pixel.
        mtf_gain: gain of the HS sensor's MTF at Nyquist.
        every: of the pixels of a window one in so many counts.
    """

    def __init__(self, ratio: int, mtf_gain: float, every: int = 1) -> None:
        self._ratio, self._gain, self._every = ratio, mtf_gain, every
        self._details: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, base: Tensor, guide: Tensor, mask: Tensor) -> None:
        """Look at a window.

        Args:
            base: `[s, rows, cols]`, the base bands on the coarse grid.
            guide: `[guide bands, rows, cols]`, degraded to the coarse grid.
            mask: `[rows, cols]`, True where both are valid.
        """
        detail = _detail(torch.cat([base, guide]), mask, self._ratio, self._gain)
        if detail is not None:
            self._details.append(detail[:, :: self._every])
        self._values.append(base[:, mask].double().cpu()[:, :: self._every])

    def precision(self) -> Tensor:
        """Return the inverse covariance of the closed form's error, `[s, s]` float32."""
        values = torch.cat(self._values, dim=1)
        count = len(values)
        eye = torch.eye(count, dtype=torch.float64)
        if not self._details:
            return torch.linalg.inv(BLIND * torch.diag(values.var(dim=1)) + FLOOR * eye).float()
        detail = torch.cat(self._details, dim=1)
        own, said = detail[:count], detail[count:]
        square = said @ said.T
        square = square + 1e-6 * square.diagonal().mean().clamp_min(1e-30) * torch.eye(
            len(said), dtype=square.dtype
        )
        left = own - torch.linalg.solve(square, said @ own.T).T @ said
        scale = 1.4826 * left.abs().median(dim=1, keepdim=True).values
        left = left.clamp(-OUTLIERS * scale, OUTLIERS * scale)
        return torch.linalg.inv(left @ left.T / left.shape[1] + FLOOR * eye).float()


def _detail(image: Tensor, mask: Tensor, ratio: int, mtf_gain: float) -> Tensor | None:
    """Return what the sensor one scale coarser would lose, `[channels, pixels]` float64; None for too few pixels."""
    rows, cols = (n // ratio * ratio for n in mask.shape)
    if min(rows, cols) < 2 * ratio:
        return None
    low, seen = degrade(image, ratio, mtf_gain, mask)
    known = mask[:rows, :cols] & (interpolate(seen.to(image)[None], ratio)[0] > 0.999)
    if int(known.sum()) < MIN_PIXELS:
        return None
    detail = image[:, :rows, :cols] - interpolate(low, ratio)
    return detail[:, known].double().cpu()
