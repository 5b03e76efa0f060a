# SPDX-License-Identifier: GPL-2.0-or-later
"""Spectral responses of simulated guides: what a PAN or MSI band collects from the bands of an HS cube."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import HyperSharpError

Tensor = torch.Tensor

PAN_NM = (450.0, 750.0)
"""Range of the simulated panchromatic band: the plain mean of the HS bands centred in it."""
MSI_NM: dict[str, tuple[tuple[float, float], ...]] = {
    "3": ((450, 515), (525, 600), (630, 680)),
    "4": ((450, 515), (525, 600), (630, 680), (760, 900)),
    "6": ((450, 515), (525, 600), (630, 680), (760, 900), (1560, 1660), (2100, 2300)),
    "8": ((400, 450), (450, 510), (510, 580), (585, 625), (630, 690), (705, 745), (770, 895), (860, 1040)),
}
"""Gaussian MSI guides by their number of bands: edges at half maximum, in nm."""
MIN_COVERED = 0.05
"""A guide band of which the cube sees less than this share is left out."""
WARN_COVERED = 0.7


@dataclass
class GuideResponse:
    """How to make a guide from a cube.

    Attributes:
        weights: `[guide bands, HS bands]` float32, each row sums to 1.
        names: name of each guide band.
        centre_nm: response-weighted mean wavelength of each guide band; None where wavelengths are assumed.
        fwhm_nm: equivalent width of each guide band; None where wavelengths are assumed.
        warnings: what the user should know.
    """

    weights: Tensor
    names: list[str]
    centre_nm: list[float | None]
    fwhm_nm: list[float | None]
    warnings: list[str]


def assumed_wavelengths(bands: int) -> tuple[list[float], str]:
    """Return wavelengths in nm for a cube that states none, and the sentence that says what was assumed."""
    lower, upper = (400.0, 2500.0) if bands >= 130 else (400.0, 1000.0)
    step = (upper - lower) / max(1, bands - 1)
    text = (
        f"the cube states no wavelengths: its {bands} bands are assumed to lie evenly between "
        f"{lower:.0f} and {upper:.0f} nm when the guide is simulated"
    )
    return [lower + step * i for i in range(bands)], text


def _spacing(wavelengths: Tensor, fwhm: Tensor | None) -> Tensor:
    """Return the stretch of spectrum in nm that each band stands for, gaps between bands left out."""
    order = torch.argsort(wavelengths)
    ordered = wavelengths[order]
    gaps = torch.diff(ordered)
    if gaps.numel() == 0:
        return torch.ones_like(wavelengths)
    typical = gaps.median().clamp_min(1e-3)
    limit = 2 * typical if fwhm is None else torch.maximum(2 * fwhm[order], torch.full_like(ordered, 1e-3))
    ends = torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])
    width = torch.minimum(0.5 * (ends[0] + ends[1]), limit)
    return torch.empty_like(width).scatter_(0, order, width)


def read_response_csv(path: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Read response functions: a `wavelength_nm` column and one column a band.

    Returns:
        wavelengths `[samples]` in nm, ascending, and responses `[samples]` by column name (negative values,
        which are measurement noise, become 0).

    Raises:
        HyperSharpError: missing or unreadable file, no `wavelength_nm` column, or values that are no numbers.
    """
    hint = (
        "the first line names the columns: wavelength_nm, then one column a band; then one line a wavelength"
    )
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HyperSharpError(f"cannot read the response functions {path}: {error}", hint) from error
    names = [name for name in (lines[0] if lines else {}) if name]
    if "wavelength_nm" not in names or len(names) < 2 or len(lines) < 2:
        raise HyperSharpError(f"{path} is no table of response functions", hint)
    try:
        table = torch.tensor([[float(line[name]) for name in names] for line in lines], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise HyperSharpError(f"{path} holds something that is no number: {error}", hint) from error
    if not bool(torch.isfinite(table).all()):
        raise HyperSharpError(f"{path} holds values that are not finite", hint)
    table = table[torch.argsort(table[:, names.index("wavelength_nm")])]
    wavelengths = table[:, names.index("wavelength_nm")].contiguous()
    bands = {n: table[:, i].clamp_min(0).contiguous() for i, n in enumerate(names) if n != "wavelength_nm"}
    return wavelengths, bands


def _interpolated(grid: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Return a sampled function at other places, 0 outside its samples."""
    right = torch.searchsorted(grid, at).clamp(1, grid.numel() - 1)
    left = right - 1
    share = ((at - grid[left]) / (grid[right] - grid[left]).clamp_min(1e-9)).clamp(0, 1)
    inside = (at >= grid[0]) & (at <= grid[-1])
    return torch.where(inside, values[left] * (1 - share) + values[right] * share, torch.zeros_like(at))


def guide_response(
    guide: str,
    wavelengths_nm: list[float | None],
    fwhm_nm: list[float | None] | None = None,
    usable: list[bool] | None = None,
) -> GuideResponse:
    """Return the weights that turn an HS cube into a guide.

    Args:
        guide: "pan", a number of Gaussian MSI bands (a key of `MSI_NM`), or the path of a response CSV.
        wavelengths_nm: band centres of the cube; when any is unknown, all are assumed (with a warning).
        fwhm_nm: band widths, where known: a response is then averaged over each HS band.
        usable: False for bands (empty, bad) that must not enter the guide.

    Raises:
        HyperSharpError: no such guide, or the cube sees nothing of it.
    """
    warnings: list[str] = []
    stated = all(w is not None and math.isfinite(w) for w in wavelengths_nm)
    if stated:
        centres = torch.tensor([float(w) for w in wavelengths_nm if w is not None], dtype=torch.float64)
        widths = None
        if fwhm_nm is not None and all(w is not None and w > 0 for w in fwhm_nm):
            widths = torch.tensor([float(w) for w in fwhm_nm if w is not None], dtype=torch.float64)
    else:
        assumed, text = assumed_wavelengths(len(wavelengths_nm))
        centres, widths = torch.tensor(assumed, dtype=torch.float64), None
        warnings.append(text)
    good = torch.ones_like(centres, dtype=torch.bool) if usable is None else torch.tensor(usable)
    if guide == "pan":
        rows = [("PAN", ((centres >= PAN_NM[0]) & (centres <= PAN_NM[1]) & good).double(), 1.0)]
    else:
        rows = _sampled_rows(guide, centres, widths, good)
    kept = []
    for name, row, covered in rows:
        if float(row.sum()) <= 0 or covered < MIN_COVERED:
            warnings.append(f"guide band {name} is left out: the cube has no bands there")
            continue
        if covered < WARN_COVERED:
            warnings.append(
                f"the cube covers only {100 * covered:.0f} % of the response of guide band {name}"
            )
        kept.append((name, row / row.sum()))
    if not kept:
        raise HyperSharpError(
            f"the cube sees nothing of the guide {guide!r}",
            f"the cube's bands lie between {float(centres.min()):.0f} and {float(centres.max()):.0f} nm: "
            "choose another guide",
        )
    weights = torch.stack([row for _, row in kept])
    middle = weights @ centres
    spread = 2 * math.sqrt(3.0) * ((weights @ centres.square()) - middle.square()).clamp_min(0).sqrt()
    width = _spacing(centres, widths).mean()
    return GuideResponse(
        weights.float(),
        [name for name, _ in kept],
        [float(m) if stated else None for m in middle],
        [max(float(s), float(width)) if stated else None for s in spread],
        warnings,
    )


def _sampled_rows(
    guide: str, centres: Tensor, widths: Tensor | None, good: Tensor
) -> list[tuple[str, Tensor, float]]:
    """Return (name, unnormalised weights, share of the response that the cube covers) of each guide band."""
    if guide in MSI_NM:
        grid = torch.arange(300.0, 2601.0, dtype=torch.float64)
        curves = {}
        for i, (lower, upper) in enumerate(MSI_NM[guide]):
            sigma = (upper - lower) / 2.354820045
            curve = torch.exp(-0.5 * ((grid - 0.5 * (lower + upper)) / sigma) ** 2)
            # Real filters block: in a cube with few bands near by, far tails would count for too much.
            curve = torch.where((grid - 0.5 * (lower + upper)).abs() <= (upper - lower), curve, 0.0)
            curves[f"MSI {i + 1} ({lower:.0f}-{upper:.0f} nm)"] = curve
    elif guide.isdigit() or not guide.strip():
        raise HyperSharpError(
            f"no simulated guide has {guide.strip() or 'no'} bands",
            f"use pan, {', '.join(MSI_NM)}, or the path of a CSV of response functions",
        )
    else:
        grid, curves = read_response_csv(guide)
    spacing = _spacing(centres, widths)
    half = 0.5 * (widths if widths is not None else spacing)
    offsets = torch.linspace(-1, 1, 9, dtype=torch.float64)
    at = centres[:, None] + half[:, None] * offsets[None, :]
    rows = []
    for name, curve in curves.items():
        row = _interpolated(grid, at, curve).mean(dim=1) * spacing * good
        whole = float(torch.trapezoid(curve, grid))
        rows.append((name, row, min(1.0, float(row.sum()) / whole) if whole > 0 else 0.0))
    return rows
