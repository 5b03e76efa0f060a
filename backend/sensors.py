# SPDX-License-Identifier: GPL-2.0-or-later
"""Sensors and wavelengths: band ranges of guides, spectral ranges of HS sensors, bands for true colour.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
Numbers are the agencies' and vendors' published band edges and centres, in nanometres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence  # noqa: UP035 - evaluated on 3.9

TRUE_COLOUR_NM = (650.0, 550.0, 450.0)
"""Red, green and blue of a natural picture."""
COLOUR_INFRARED_NM = (850.0, 650.0, 550.0)
MAX_COLOUR_DISTANCE_NM = 100.0
"""A band further than this from a wanted wavelength does not stand for it."""


@dataclass(frozen=True)
class GuideSensor:
    """A guide's bands as (lower, upper) edges at half maximum, in nm."""

    id: str
    title: str
    bands_nm: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class HyperspectralSensor:
    """An HS sensor: range in nm, number of bands as delivered, ground sampling distance in m."""

    id: str
    title: str
    range_nm: tuple[float, float]
    bands: int
    gsd_m: float


GUIDE_SENSORS: dict[str, GuideSensor] = {
    s.id: s
    for s in (
        GuideSensor("ali-pan", "EO-1 ALI panchromatic", ((480, 690),)),
        GuideSensor("prisma-pan", "PRISMA panchromatic", ((400, 700),)),
        GuideSensor("landsat8-pan", "Landsat 8/9 OLI panchromatic", ((503, 676),)),
        GuideSensor("worldview2-pan", "WorldView-2 panchromatic", ((450, 800),)),
        GuideSensor("worldview3-pan", "WorldView-3 panchromatic", ((450, 800),)),
        GuideSensor("pleiades-pan", "Pleiades panchromatic", ((470, 830),)),
        GuideSensor("spot67-pan", "SPOT 6/7 panchromatic", ((450, 745),)),
        GuideSensor(
            "sentinel2-10m",
            "Sentinel-2 MSI, 10 m bands (B2, B3, B4, B8)",
            ((458, 523), (543, 578), (650, 680), (785, 900)),
        ),
        GuideSensor(
            "ali-ms",
            "EO-1 ALI multispectral",
            (
                (433, 453),
                (450, 515),
                (525, 605),
                (630, 690),
                (775, 805),
                (845, 890),
                (1200, 1300),
                (1550, 1750),
                (2080, 2350),
            ),
        ),
    )
}

HYPERSPECTRAL_SENSORS: dict[str, HyperspectralSensor] = {
    s.id: s
    for s in (
        HyperspectralSensor("prisma", "PRISMA", (400, 2505), 234, 30),
        HyperspectralSensor("enmap", "EnMAP", (418, 2445), 224, 30),
        HyperspectralSensor("hyperion", "EO-1 Hyperion", (356, 2577), 242, 30),
        HyperspectralSensor("desis", "DESIS", (402, 1000), 235, 30),
        HyperspectralSensor("emit", "EMIT", (381, 2493), 285, 60),
    )
}


def nearest_band(wavelengths_nm: Sequence[Optional[float]], target_nm: float) -> Optional[tuple[int, float]]:
    """Return (index from 0, distance in nm) of the band nearest to a wavelength; None when none is known."""
    best: Optional[tuple[int, float]] = None
    for index, wavelength in enumerate(wavelengths_nm):
        if wavelength is None or not math.isfinite(wavelength):
            continue
        distance = abs(wavelength - target_nm)
        if best is None or distance < best[1]:
            best = (index, distance)
    return best


def colour_bands(
    wavelengths_nm: Sequence[Optional[float]],
    targets_nm: Sequence[float] = TRUE_COLOUR_NM,
    usable: Optional[Sequence[bool]] = None,
) -> list[int]:
    """Return the band indices (from 0) that show red, green and blue.

    Without usable wavelengths near the targets, three bands spread over the cube stand in for them.
    """
    known = [w if usable is None or usable[i] else None for i, w in enumerate(wavelengths_nm)]
    chosen: list[int] = []
    for target in targets_nm:
        found = nearest_band(known, target)
        if found is None or found[1] > MAX_COLOUR_DISTANCE_NM:
            break
        chosen.append(found[0])
    if len(chosen) == len(targets_nm):
        return chosen
    count = len(wavelengths_nm)
    good = [i for i in range(count) if usable is None or usable[i]] or list(range(count))
    spread = (0.8, 0.5, 0.2) if len(targets_nm) == 3 else tuple(0.5 for _ in targets_nm)
    return [good[min(len(good) - 1, round(f * (len(good) - 1)))] for f in spread]


def bands_in_range(wavelengths_nm: Sequence[Optional[float]], lower_nm: float, upper_nm: float) -> list[int]:
    """Return the indices (from 0) of the bands whose centre lies in [lower_nm, upper_nm]."""
    return [i for i, w in enumerate(wavelengths_nm) if w is not None and lower_nm <= w <= upper_nm]


def to_nanometres(values: Sequence[float], units: Optional[str]) -> tuple[list[float], str]:
    """Return wavelengths in nm and a word on how their unit was known.

    Units named in any usual spelling are trusted; without units, values below 100 are read as micrometres
    (no optical sensor has bands at 100 nm or at 100 um).

    Raises:
        ValueError: the units are known to be no length (e.g. "index"), or the values are no wavelengths.
    """
    word = (units or "").strip().lower().replace("µ", "u").replace("μ", "u")
    finite = [v for v in values if math.isfinite(v)]
    if not finite or any(v <= 0 for v in finite):
        raise ValueError("wavelengths must be positive numbers")
    if word in ("nm", "nanometer", "nanometers", "nanometre", "nanometres"):
        factor, said = 1.0, "nm"
    elif word in ("um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"):
        factor, said = 1000.0, "um"
    elif word in ("m", "meter", "meters", "metre", "metres"):
        factor, said = 1e9, "m"
    elif word in ("", "unknown", "none"):
        factor, said = (1000.0, "guessed um") if max(finite) < 100 else (1.0, "guessed nm")
    else:
        raise ValueError(f"unknown wavelength units {units!r}")
    converted = [v * factor for v in values]
    if any(math.isfinite(v) and not 100 <= v <= 100_000 for v in converted):
        raise ValueError("wavelengths lie outside the optical range")
    return converted, said
