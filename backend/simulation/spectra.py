# SPDX-License-Identifier: GPL-2.0-or-later
"""Parametric reflectance spectra of land-cover materials, 400 to 2500 nm.

The shapes come from well-known absorptions, not from any spectral library: leaf pigments, red edge and liquid
water (Jacquemoud and Baret, Remote Sens. Environ. 34(2), 1990), cellulose and lignin of dry plants, iron
oxide, hydroxyl and clay of soils and tiles (Clark, Manual of Remote Sensing 3, 1999), and water's absorption.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

GRID_NM = torch.arange(380.0, 2521.0, 1.0, dtype=torch.float64)
"""The fine wavelength grid in nm on which spectra are made before they are averaged over a band."""

MATERIALS = (
    "water",
    "turbid water",
    "gravel",
    "asphalt",
    "concrete",
    "red tile",
    "slate",
    "metal sheet",
    "light soil",
    "brown soil",
    "green crop",
    "dry straw",
    "flowering crop",
    "grass",
    "broadleaf tree",
    "conifer",
)
INDEX = {name: i for i, name in enumerate(MATERIALS)}


def _dip(centre: float, sigma: float) -> Tensor:
    """Return a Gaussian of height 1 on `GRID_NM`."""
    return torch.exp(-0.5 * ((GRID_NM - centre) / sigma) ** 2)


def _step(centre: float, width: float) -> Tensor:
    """Return a rising sigmoid from 0 to 1 on `GRID_NM`."""
    return torch.sigmoid((GRID_NM - centre) / width)


def _liquid_water() -> Tensor:
    """Return the absorbance of a leaf's water, relative."""
    return (
        0.09 * _dip(975, 22)
        + 0.20 * _dip(1200, 38)
        + 0.30 * _step(1330, 25)
        + 0.95 * _dip(1450, 55)
        + 0.30 * _step(1850, 25)
        + 1.30 * _dip(1940, 65)
        + 0.90 * _step(2420, 90)
    )


def _foliage(plateau: float, chlorophyll: float, water: float, dry: float, carotene: float = 1.0) -> Tensor:
    """Return the reflectance of a canopy: a scattering plateau times pigment, water and dry matter."""
    pigments = chlorophyll * (1.42 * (1 - _step(712, 11)) + 0.95 * _dip(672, 26) + 0.20 * _dip(620, 25))
    pigments = pigments + carotene * 1.05 * (1 - _step(512, 14))
    dry_matter = (
        0.10 * _dip(1725, 35) + 0.28 * _dip(2100, 70) + 0.24 * _dip(2310, 60) + 0.55 * (1 - _step(560, 110))
    )
    return plateau * torch.exp(-pigments - water * _liquid_water() - dry * dry_matter)


def _mineral(level: float, rise_nm: float, iron: float, clay: float, moisture: float = 0.0) -> Tensor:
    """Return the reflectance of soil or fired clay: a concave rise with iron and hydroxyl absorptions."""
    rise = level * (1 - torch.exp(-(GRID_NM - 300.0) / rise_nm))
    absorbance = (
        iron * (0.55 * (1 - _step(565, 28)) + 0.16 * _dip(880, 75) + 0.18 * _dip(490, 35))
        + clay
        * (0.16 * _dip(2206, 22) + 0.10 * _dip(1412, 22) + 0.08 * _dip(2345, 25) + 0.10 * _step(2300, 60))
        + moisture * (0.25 * _dip(1450, 60) + 0.45 * _dip(1935, 70))
    )
    return rise * torch.exp(-absorbance)


def material_spectra() -> Tensor:
    """Return reflectance `[len(MATERIALS), len(GRID_NM)]`, 0 to 1, on `GRID_NM`."""
    grid = GRID_NM
    water_decay = torch.exp(-0.5 * _step(580, 12) - 1.4 * _step(690, 18) - 3.0 * _step(760, 25))
    spectra = {
        "water": 0.006 + (0.028 + 0.014 * _dip(545, 60)) * water_decay,
        "turbid water": 0.008 + (0.050 + 0.060 * _dip(575, 65) + 0.012 * _dip(810, 25)) * water_decay**0.55,
        "gravel": _mineral(0.43, 330, 0.15, 0.5, 0.15),
        "asphalt": 0.050
        + 0.035 * _step(560, 70)
        + 0.040 * _step(1000, 300)
        - 0.012 * _dip(2310, 40)
        - 0.006 * _dip(1720, 30),
        "concrete": _mineral(0.37, 300, 0.18, 0.35, 0.25) * (1 - 0.06 * _dip(2330, 35)),
        "red tile": _mineral(0.47, 420, 1.25, 0.30),
        "slate": 0.058
        + 0.020 * _step(540, 60)
        + 0.025 * _step(900, 300)
        - 0.018 * _dip(2200, 30)
        - 0.012 * _dip(700, 120),
        "metal sheet": 0.47 + 0.06 * _dip(460, 90) - 0.07 * _dip(870, 170) + 0.05 * _step(1500, 300),
        "light soil": _mineral(0.46, 560, 0.16, 0.9, 0.10),
        "brown soil": _mineral(0.27, 720, 0.34, 0.7, 0.35),
        "green crop": _foliage(0.50, 0.88, 1.15, 0.25),
        "dry straw": _foliage(0.47, 0.12, 0.18, 1.30, 0.33),
        "flowering crop": _foliage(0.50, 0.47, 0.95, 0.20, 1.25),
        "grass": _foliage(0.43, 0.72, 0.85, 0.50, 0.85),
        "broadleaf tree": _foliage(0.49, 0.86, 1.05, 0.30, 1.05),
        "conifer": _foliage(0.31, 0.90, 1.25, 0.35, 0.95),
    }
    stacked = torch.stack([spectra[name].expand_as(grid) for name in MATERIALS])
    return stacked.clamp(0.001, 1.0)


def skylight() -> Tensor:
    """Return diffuse light relative to direct sunlight on `GRID_NM`: strong in the blue, weak in the SWIR."""
    return 0.05 + 0.33 * (GRID_NM / 450.0) ** -2.0


def sample_bands(spectra: Tensor, wavelengths_nm: Tensor, fwhm_nm: Tensor) -> Tensor:
    """Average spectra over Gaussian bands.

    Args:
        spectra: `[..., len(GRID_NM)]`.
        wavelengths_nm: `[bands]` centres.
        fwhm_nm: `[bands]` full widths at half maximum.

    Returns:
        `[..., bands]` in the units of `spectra`.
    """
    sigma = (fwhm_nm.double() / 2.354820045)[:, None]
    response = torch.exp(-0.5 * ((GRID_NM[None] - wavelengths_nm.double()[:, None]) / sigma) ** 2)
    response = response / response.sum(dim=1, keepdim=True)
    return spectra.double() @ response.T
