# SPDX-License-Identifier: GPL-2.0-or-later
"""Wavelengths, widths and bad-band flags of a raster's bands, wherever the many producers put them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import rasterio

from ..product_metadata import product_bands
from ..sensors import to_nanometres

_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
_IN_DESCRIPTION = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|nanometers?|um|µm|micrometers?)\b", re.IGNORECASE)


@dataclass
class BandTable:
    """What is known of each band.

    Attributes:
        wavelength_nm: centre wavelengths in nm; None where unknown.
        fwhm_nm: full widths at half maximum in nm; None where unknown.
        good: False where the producer marks a band as bad (ENVI's `bbl`).
        descriptions: band names as in the file.
        warnings: what was wrong with the tags.
    """

    wavelength_nm: list[float | None]
    fwhm_nm: list[float | None]
    good: list[bool]
    descriptions: list[str | None]
    warnings: list[str] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Every band has a wavelength."""
        return all(w is not None for w in self.wavelength_nm)

    def take(self, indices: list[int]) -> BandTable:
        """Return the table of these bands (from 0)."""
        return BandTable(
            [self.wavelength_nm[i] for i in indices],
            [self.fwhm_nm[i] for i in indices],
            [self.good[i] for i in indices],
            [self.descriptions[i] for i in indices],
        )


def _number(text: str | None) -> float | None:
    """Return the only number of a tag's text, or None."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        found = _NUMBER.fullmatch(text.strip())
        value = float(found.group()) if found else math.nan
    return value if math.isfinite(value) else None


def _lower(tags: dict[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in tags.items()}


def _list(text: str | None, count: int) -> list[float | None] | None:
    """Return the numbers of an ENVI-like `{a, b, c}` list when there is one a band."""
    if not text:
        return None
    values = [_number(part) for part in text.strip().strip("{}").split(",")]
    return values if len(values) == count else None


def read_band_table(dataset: rasterio.DatasetReader) -> BandTable:
    """Read wavelengths from wherever producers put them.

    In this order: GDAL's IMAGERY domain, band tags, dataset lists, band names, the metadata file of an EnMAP or DESIS
    product. Partial, nonsensical or unit-less tags never raise: they become None, or a guess that a warning names.
    """
    count = dataset.count
    table = BandTable([None] * count, [None] * count, [True] * count, list(dataset.descriptions))
    dataset_tags = {**_lower(dataset.tags(ns="ENVI")), **_lower(dataset.tags())}
    units: str | None = dataset_tags.get("wavelength_units") or dataset_tags.get("wavelength units")
    raw: list[float | None] = [None] * count
    fwhm: list[float | None] = [None] * count
    imagery = [_lower(dataset.tags(index + 1, ns="IMAGERY")) for index in range(count)]
    has_imagery = any("central_wavelength_um" in tags for tags in imagery)
    for index in range(count):
        tags = _lower(dataset.tags(index + 1))
        if _number(tags.get("bbl")) == 0 or _number(tags.get("badbandmultiplier")) == 0:
            table.good[index] = False
        if has_imagery:
            raw[index], units = _number(imagery[index].get("central_wavelength_um")), "um"
            fwhm[index] = _number(imagery[index].get("fwhm_um"))
        else:
            raw[index], fwhm[index] = _number(tags.get("wavelength")), _number(tags.get("fwhm"))
            units = tags.get("wavelength_units") or tags.get("wavelength_unit") or units
    if all(v is None for v in raw):
        raw = _list(dataset_tags.get("wavelength") or dataset_tags.get("wavelengths"), count) or raw
        fwhm = _list(dataset_tags.get("fwhm"), count) or fwhm
    if all(v is None for v in raw):
        for index, text in enumerate(table.descriptions):
            found = _IN_DESCRIPTION.search(text or "")
            if found:
                raw[index] = float(found.group(1))
                units = found.group(2)
    product = product_bands(dataset.name, count) if all(v is None for v in raw) else None
    if product:
        raw, units = [band.wavelength_nm for band in product], "nm"
        fwhm = [band.fwhm_nm for band in product]
    flags = _list(dataset_tags.get("bbl"), count)
    if flags:
        table.good = [good and flag != 0 for good, flag in zip(table.good, flags)]
    _convert(table, raw, fwhm, units)
    return table


def _convert(table: BandTable, raw: list[float | None], fwhm: list[float | None], units: str | None) -> None:
    """Fill the table with wavelengths in nm, or leave it empty with a warning."""
    known = [v for v in raw if v is not None]
    if not known:
        table.warnings.append("the bands have no wavelengths: colours and band ranges are not known")
        return
    try:
        converted, said = to_nanometres(known, units)
    except ValueError as error:
        table.warnings.append(f"the wavelength tags make no sense and are ignored: {error}")
        return
    if said.startswith("guessed"):
        table.warnings.append(f"the wavelengths have no units: {said.removeprefix('guessed ')} assumed")
    if len(known) < len(raw):
        table.warnings.append(f"{len(raw) - len(known)} of {len(raw)} bands have no wavelength")
    factor = converted[0] / known[0]
    table.wavelength_nm = [None if v is None else round(v * factor, 4) for v in raw]
    table.fwhm_nm = [None if v is None or v <= 0 else round(v * factor, 4) for v in fwhm]
