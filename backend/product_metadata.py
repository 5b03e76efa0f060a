# SPDX-License-Identifier: GPL-2.0-or-later
"""Wavelengths that a product keeps in a file of its own beside the image: EnMAP's and DESIS's METADATA.XML.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple, Optional

IMAGE, METADATA = "-SPECTRAL_IMAGE", "-METADATA.XML"
"""Where an image's name is cut, and what its metadata's name goes on with, in any case of letters."""
LARGEST_BYTES = 64 * 2**20
# No XML parser: the standard library's are refused by the plugin site's scan, and this needs two numbers a band.
_BAND = re.compile(r"<(bandID|band)\b[^>]*>(.*?)</\1\s*>", re.DOTALL)
_CENTRE = re.compile(r"<wavelengthCenterOfBand[^>]*>\s*([-+.\deE]+)\s*<")
_WIDTH = re.compile(r"<(?:FWHMOfBand|wavelengthWidthOfBand)[^>]*>\s*([-+.\deE]+)\s*<")


class ProductBand(NamedTuple):
    """A band's centre and full width at half maximum, in nm; None for a width that is not stated."""

    wavelength_nm: float
    fwhm_nm: Optional[float]


def product_bands(image: str, count: int) -> Optional[list[ProductBand]]:
    """Return the bands of a product's image from the metadata file beside it, in the image's order.

    Args:
        image: path of the image, `...-SPECTRAL_IMAGE.TIF`.
        count: its bands.

    Returns:
        None where there is no such file, or where it does not describe so many bands.
    """
    path = _metadata_file(image)
    if path is None:
        return None
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = []
    for band in _BAND.finditer(text):
        centre, width = (_number(pattern.search(band.group(2))) for pattern in (_CENTRE, _WIDTH))
        if centre is not None:  # lists of dead pixels name bands too
            found.append(ProductBand(centre, width))
    return found if len(found) == count else None


def _metadata_file(image: str) -> Optional[Path]:
    """Return the metadata file of a product's image; None without one."""
    path = Path(image)
    cut = path.name.upper().rfind(IMAGE)
    if cut < 0 or not path.is_file():
        return None
    wanted = (path.name[:cut] + METADATA).upper()
    try:
        return next((beside for beside in path.parent.iterdir() if beside.name.upper() == wanted), None)
    except OSError:
        return None


def _number(found: Optional[re.Match[str]]) -> Optional[float]:
    """Return a positive number that a pattern found."""
    try:
        value = float(found.group(1)) if found else math.nan
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None
