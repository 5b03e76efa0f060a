# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pair itself says of its sensors: the HS sensor's blur, the shift between the images, the guide's SRF.

A guide that the HS bands explain must, seen through the true PSF at the true place, be a linear mixture of HS
coefficients: the PSF gain and the shift are those at which the unexplained share of its variance is least.

After Simoes et al., IEEE TGRS 53(6), 2015, sec. IV (estimation of blur and spectral response from the pair),
here with a Gaussian of one unknown gain, a shift, and the HS image's own subspace in place of all bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.optimize import nnls
from torch import Tensor

from .control import Control
from .degradation import gaussian_sigma, separable
from .methods.subspace import Subspace, apply
from .scene import Scene, SceneStatistics

GAIN_RANGE = (0.06, 0.75)
SHIFT_LIMIT = 1.0
"""Largest shift looked for, in coarse pixels."""
WINDOW = 64
"""Side of a window in coarse pixels; up to `WINDOWS` of them are spread over the scene."""
WINDOWS = 4
STEPS = ((0.12, 0.5, 0.5), (0.08, 0.25, 0.25), (0.04, 0.1, 0.1), (0.015, 0.03, 0.03))
"""Steps of the search in PSF width, rows and columns, in coarse pixels."""
ENOUGH = 2e-5
"""Unexplained share below which nothing remains to be found."""
MIN_PIXELS = 100
"""Coarse pixels below which nothing is estimated."""


@dataclass
class ResponseEstimate:
    """The blur and the shift that a pair shows.

    Attributes:
        mtf_gain: of the HS sensor's PSF at its Nyquist frequency, relative to the guide's own pixels.
        shift: (rows, cols) in fine pixels to add to a guide position to find the same ground in the HS frame's
            pixel; 0, 0 for images in register.
        unexplained: share of the degraded guide's variance that the HS image does not explain, at this estimate.
        nominal_unexplained: the same at the nominal gain and without a shift.
    """

    mtf_gain: float
    shift: tuple[float, float]
    unexplained: float
    nominal_unexplained: float


@dataclass
class _Window:
    """A part of the scene: coefficients and ones `[rank + 1, pixels]`, and the guide with a margin around."""

    design: Tensor
    keep: Tensor
    guide: Tensor
    size: tuple[int, int]
    margin: int


@lru_cache(maxsize=32)
def shifted_decimation(count: int, margin: int, ratio: int, gain: float, shift: float) -> Tensor:
    """Return the PSF sampled at the centres of coarse pixels moved by `shift` fine pixels.

    Args:
        count: coarse pixels.
        margin: fine pixels given before the first and after the last of them.
        ratio: fine pixels per coarse pixel.
        gain: gain of the MTF at Nyquist.
        shift: in fine pixels.

    Returns:
        `[count, count * ratio + 2 * margin]`.
    """
    centre = (torch.arange(count, dtype=torch.float64) + 0.5) * ratio - 0.5 + shift + margin
    distance = torch.arange(count * ratio + 2 * margin, dtype=torch.float64)[None, :] - centre[:, None]
    kernel = torch.exp(-0.5 * (distance / gaussian_sigma(ratio, gain)) ** 2)
    return (kernel / kernel.sum(dim=1, keepdim=True).clamp_min(1e-30)).to(torch.float32)


def _starts(size: int, side: int, count: int) -> list[int]:
    """Return where up to `count` windows of `side` begin, evenly spread."""
    fit = min(count, max(1, size // side))
    return [round(i * (size - side) / max(1, fit - 1)) for i in range(fit)] if size > side else [0]


def _windows(scene: Scene, subspace: Subspace, control: Control) -> list[_Window]:
    r, (height, width) = scene.ratio, scene.coarse_shape
    margin = math.ceil(4 * gaussian_sigma(r, GAIN_RANGE[0]) + SHIFT_LIMIT * r)
    per_axis = math.isqrt(WINDOWS)
    found = []
    for r0 in _starts(height, WINDOW, per_axis):
        for c0 in _starts(width, WINDOW, per_axis):
            control.check()
            # The outermost pixels would see beyond the guide.
            edge = math.ceil(margin / r)
            rows = max(r0, edge), min(height - edge, r0 + WINDOW)
            cols = max(c0, edge), min(width - edge, c0 + WINDOW)
            if rows[0] >= rows[1] or cols[0] >= cols[1]:
                continue
            fine_rows = rows[0] * r - margin, rows[1] * r + margin
            fine_cols = cols[0] * r - margin, cols[1] * r + margin
            hs, hs_mask = (t.to(scene.device) for t in scene.hs.read(rows, cols))
            guide, guide_mask = (t.to(scene.device) for t in scene.guide.read(fine_rows, fine_cols))
            seen = separable(
                shifted_decimation(rows[1] - rows[0], margin, r, GAIN_RANGE[0], 0.0),
                shifted_decimation(cols[1] - cols[0], margin, r, GAIN_RANGE[0], 0.0),
                guide_mask.to(guide.dtype),
            )
            keep = (hs_mask & (seen > 0.999)).reshape(-1)
            z = apply(subspace.encode, subspace.centred(hs)).reshape(subspace.rank, -1)[:, keep]
            design = torch.cat([z, torch.ones_like(z[:1])]).to(torch.float64)
            mean = guide.reshape(len(guide), -1).mean(dim=1)[:, None, None]
            guide = torch.where(guide_mask, guide - mean, guide.new_zeros(()))
            found.append(_Window(design, keep, guide, (rows[1] - rows[0], cols[1] - cols[0]), margin))
    return found


class _Misfit:
    """The unexplained share of the degraded guide as a function of gain and shift."""

    def __init__(self, scene: Scene, subspace: Subspace, control: Control) -> None:
        self.ratio, self.control = scene.ratio, control
        self.windows = _windows(scene, subspace, control)
        self.pixels = sum(w.design.shape[1] for w in self.windows)
        # Each window has its own offset: haze and seasons differ across a scene, edges do not.
        self._bases = [torch.linalg.qr(w.design.T).Q for w in self.windows]

    def __call__(self, gain: float, rows: float, cols: float) -> float:
        self.control.check()
        rest = whole = None
        for w, basis in zip(self.windows, self._bases):
            low = separable(
                shifted_decimation(w.size[0], w.margin, self.ratio, gain, rows),
                shifted_decimation(w.size[1], w.margin, self.ratio, gain, cols),
                w.guide,
            )
            target = low.reshape(len(low), -1)[:, w.keep].T.to(torch.float64)
            target = target - target.mean(dim=0)
            left = target - basis @ (basis.T @ target)
            mine, all_of_it = left.square().sum(dim=0), target.square().sum(dim=0)
            rest, whole = (mine, all_of_it) if rest is None else (rest + mine, whole + all_of_it)
        alive = whole > 1e-12 * whole.max()
        return float((rest[alive] / whole[alive]).mean()) if bool(alive.any()) else 1.0


def estimate_response(scene: Scene, subspace: Subspace, control: Control) -> ResponseEstimate | None:
    """Estimate the HS sensor's MTF gain and the shift between guide and HS image.

    Returns:
        None where the scene is too small to say.
    """
    misfit = _Misfit(scene, subspace, control)
    if misfit.pixels < max(MIN_PIXELS, 5 * subspace.rank):
        return None
    nominal = misfit(scene.mtf_hs, 0.0, 0.0)
    r = float(scene.ratio)
    # The blur is varied in its width relative to the coarse pixel, where the misfit is nearly a parabola.
    low, high = (gaussian_sigma(1, g) for g in reversed(GAIN_RANGE))

    def at(width: float, rows: float, cols: float) -> float:
        return misfit(_gain(width), rows * r, cols * r)

    best = [gaussian_sigma(1, scene.mtf_hs), 0.0, 0.0]
    value = nominal
    limits = ((low, high), (-SHIFT_LIMIT, SHIFT_LIMIT), (-SHIFT_LIMIT, SHIFT_LIMIT))
    for step in STEPS if nominal > ENOUGH else ():
        for axis in (1, 2, 0):
            trial = []
            for sign in (-1, 1):
                moved = list(best)
                moved[axis] = min(max(moved[axis] + sign * step[axis], limits[axis][0]), limits[axis][1])
                trial.append((moved, at(*moved)))
            (minus, left), (plus, right) = trial
            curvature = left - 2 * value + right
            if curvature > 0:
                moved = list(best)
                moved[axis] += 0.5 * (left - right) / curvature * step[axis]
                moved[axis] = min(max(moved[axis], minus[axis]), plus[axis])
                trial.append((moved, at(*moved)))
            candidate, least = min(trial, key=lambda pair: pair[1])
            if least < value:
                best, value = candidate, least
    return ResponseEstimate(_gain(best[0]), (best[1] * r, best[2] * r), value, nominal)


def _gain(width: float) -> float:
    """Return the gain at Nyquist of a Gaussian of this width in coarse pixels."""
    return math.exp(-0.5 * (math.pi * width) ** 2)


def estimate_srf(statistics: SceneStatistics) -> tuple[Tensor, Tensor]:
    """Return the guide's spectral response `[guide bands, bands]` >= 0, offsets `[guide bands]` (float64).

    Non-negative least squares of the degraded guide on the HS bands, from their joint second moments: guide =
    response hs + offset. Bands that say the same share the response as the solver finds them; a small ridge in
    the bands' own units keeps it defined.
    """
    covariance = statistics.hs_covariance
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    correlation = covariance / scale[:, None] / scale[None, :]
    system = correlation + SRF_RIDGE * torch.eye(len(correlation), dtype=correlation.dtype)
    root = torch.linalg.cholesky(system)
    cross = statistics.cross_covariance / scale[:, None]
    target = torch.linalg.solve_triangular(root, cross, upper=False)
    rows = [torch.from_numpy(nnls(root.T.numpy(), column.numpy())[0]) for column in target.T]
    response = torch.stack(rows).to(covariance) / scale[None, :]
    return response, statistics.guide_mean - response @ statistics.hs_mean


SRF_RIDGE = 1e-6
"""Ridge of the response's regression, relative to unit variance."""
