# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample scene: a made-up piece of countryside as a georeferenced reflectance cube, drawn by code.

Materials are mixed linearly on a sub-pixel grid under direct sunlight and bluish skylight, so that a pixel's
spectrum is what a sensor would integrate: mixed pixels at every edge, shaded slopes, cast shadows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nn

from .layout import build_ground, sunlight
from .spectra import MATERIALS, material_spectra, sample_bands, skylight

Tensor = torch.Tensor

PIXEL_M = 4.0
"""Fine pixel size of the sample scene in metres."""
CRS = "EPSG:32632"
ORIGIN = (620_000.0, 5_330_000.0)
"""Upper left corner in `CRS`, in metres; the place is arbitrary, nothing there looks like the scene."""
SCALE = 10_000
"""Digital numbers per unit of reflectance."""
SUBPIXELS = 4
NOISE_SNR_DB = 46.0
"""Signal-to-noise ratio of the reference itself."""


@dataclass
class Scene:
    """A reference cube.

    Attributes:
        cube: int16 `[bands, rows, cols]`, reflectance times `SCALE`.
        wavelengths_nm: band centres.
        fwhm_nm: full widths at half maximum.
        transform: the six affine coefficients (a, b, c, d, e, f) of pixel corner to map.
        crs: the map's CRS.
        abundance: `[materials, rows, cols]` float32, the share of each of `MATERIALS`.
    """

    cube: Tensor
    wavelengths_nm: list[float]
    fwhm_nm: list[float]
    transform: tuple[float, float, float, float, float, float]
    crs: str
    abundance: Tensor


def sample_bands_nm() -> tuple[list[float], list[float]]:
    """Return centres and widths in nm of the sample sensor's 87 bands, 425 to 2440 nm.

    As in delivered products of real sensors, the opaque water-vapour windows (1350-1450 and 1800-1950 nm) are
    left out.
    """
    centres: list[float] = []
    widths: list[float] = []
    for first, last, step, width in (
        (425, 1001, 12, 12.5),
        (1025, 1330, 25, 18.0),
        (1490, 1775, 28, 20.0),
        (1985, 2441, 35, 24.0),
    ):
        centre = float(first)
        while centre <= last:
            centres.append(centre)
            widths.append(width)
            centre += step
    return centres, widths


def vapour_residual(wavelengths_nm: Tensor) -> Tensor:
    """Return what an imperfect correction leaves of the vapour bands (820, 940, 1130 nm), near 1."""
    bands = ((823.0, 12.0, 0.008), (940.0, 18.0, 0.050), (1130.0, 22.0, 0.060))
    depth = sum(d * torch.exp(-0.5 * ((wavelengths_nm - c) / s) ** 2) for c, s, d in bands)
    return 1.0 - depth


def make_scene(rows: int = 240, cols: int = 240, seed: int = 0) -> Scene:
    """Return the sample scene.

    Args:
        rows: height in fine pixels of `PIXEL_M`.
        cols: width in fine pixels.
        seed: another seed is another village.
    """
    generator = torch.Generator().manual_seed(seed)
    side = max(rows, cols)
    ground = build_ground(side * PIXEL_M, PIXEL_M / SUBPIXELS, generator)
    direct, sky = sunlight(ground.height, ground.pixel)
    relief = 1 + 0.03 * ground.noise(3.4)
    wavelengths, widths = sample_bands_nm()
    centres, fwhm = torch.tensor(wavelengths), torch.tensor(widths)
    spectra = sample_bands(material_spectra(), centres, fwhm).float()
    blue = sample_bands(skylight(), centres, fwhm).float()

    def seen(light: Tensor) -> Tensor:
        """Return what a pixel collects of each material under a light, `[materials, rows * cols]`."""
        lit = nn.avg_pool2d((ground.abundance * (light * ground.brightness)[None])[None], SUBPIXELS)[0]
        return lit[:, :rows, :cols].reshape(len(MATERIALS), -1)

    # Normalised so that flat, open ground shows its own reflectance.
    sunlit = spectra.T @ seen(direct * relief)
    skylit = (spectra * blue[None]).T @ seen(sky)
    reflectance = (sunlit + skylit) / (1 + blue[:, None])
    reflectance = reflectance * vapour_residual(centres)[:, None]
    noise = torch.randn(reflectance.shape, generator=generator)
    power = reflectance.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (-NOISE_SNR_DB / 20)
    # Two thirds of the noise grow with the signal (photons), one third does not (electronics).
    level = (reflectance / reflectance.mean(dim=1, keepdim=True)).clamp_min(0)
    reflectance = reflectance + noise * power * (1 / 3 + 2 / 3 * level).sqrt()
    cube = (reflectance * SCALE).round().clamp(1, 20_000).to(torch.int16).reshape(-1, rows, cols)
    abundance = nn.avg_pool2d(ground.abundance[None], SUBPIXELS)[0][:, :rows, :cols]
    transform = (PIXEL_M, 0.0, ORIGIN[0], 0.0, -PIXEL_M, ORIGIN[1])
    return Scene(cube, wavelengths, widths, transform, CRS, abundance)


__all__ = ["PIXEL_M", "SCALE", "Scene", "make_scene", "sample_bands_nm", "vapour_residual"]
