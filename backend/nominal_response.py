# SPDX-License-Identifier: GPL-2.0-or-later
"""The guide's nominal spectral response: of a known sensor, or from a table of the user's own."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import HyperSharpError
from .sensors import GUIDE_SENSORS
from .simulation.response import guide_response


def nominal_srf(source: str, wavelength_nm: list[float | None], guide_bands: int) -> Tensor:
    """Return what each guide band collects from the HS bands, `[guide bands, bands]` float64, rows sum to 1.

    Args:
        source: the id of a sensor (`sensors.GUIDE_SENSORS`: band edges at half maximum), or the path of a CSV
            (`wavelength_nm` and one column a band), or such a path with the columns to take, in the guide's band
            order: `FILE.csv:B_2,B_3,B_4`.
        wavelength_nm: centres of the HS bands.
        guide_bands: number of bands of the guide.

    Raises:
        HyperSharpError: unknown source or column, no wavelengths, or another number of bands than the guide's.
    """
    known = [w for w in wavelength_nm if w is not None]
    if len(known) < len(wavelength_nm):
        raise HyperSharpError(
            "a spectral response needs the wavelength of every HS band",
            "leave the option srf out: it is estimated",
        )
    if source in GUIDE_SENSORS:
        centres = torch.tensor(known, dtype=torch.float64)
        edges = GUIDE_SENSORS[source].bands_nm
        rows = torch.stack([((centres >= low) & (centres <= high)).double() for low, high in edges])
        names = [f"{low:g}-{high:g} nm" for low, high in edges]
    else:
        rows, names = _from_csv(source, wavelength_nm)
    if len(rows) != guide_bands:
        raise HyperSharpError(
            f"the response {source} has {len(rows)} band(s) that the HS image sees, the guide {guide_bands}",
            "name the columns in the guide's band order: FILE.csv:COLUMN,COLUMN",
        )
    unseen = [name for name, row in zip(names, rows) if float(row.sum()) <= 0]
    if unseen:
        raise HyperSharpError(
            f"no HS band lies in guide band {unseen[0]}",
            "leave the option srf out: the response is estimated",
        )
    return rows / rows.sum(dim=1, keepdim=True)


def _from_csv(source: str, wavelength_nm: list[float | None]) -> tuple[Tensor, list[str]]:
    """Return rows and names of a table's columns, all or those that are named."""
    end = source.lower().rfind(".csv") + 4
    if end < 4:
        raise HyperSharpError(
            f"no sensor and no response table is called {source!r}",
            f"use a CSV file, or one of {', '.join(GUIDE_SENSORS)}",
        )
    path, wanted = source[:end], [name for name in source[end:].lstrip(":").split(",") if name]
    response = guide_response(path, wavelength_nm)
    rows = response.weights.double()
    if not wanted:
        return rows, response.names
    missing = [name for name in wanted if name not in response.names]
    if missing:
        raise HyperSharpError(
            f"{path} has no column {missing[0]!r} that the HS image sees",
            f"its columns are {', '.join(response.names)}",
        )
    return rows[[response.names.index(name) for name in wanted]], wanted


def scaled_to_guide(nominal: Tensor, covariance: Tensor, cross: Tensor) -> Tensor:
    """Bring a nominal response to the guide's units by one gain a band (least squares on second moments).

    Args:
        nominal: `[guide bands, bands]`, rows sum to 1.
        covariance: `[bands, bands]` of the HS image.
        cross: `[bands, guide bands]` of HS image and degraded guide.
    """
    variance = (nominal @ covariance * nominal).sum(dim=1)
    shared = (nominal * cross.T).sum(dim=1)
    gain = torch.where(variance > 0, shared / variance.clamp_min(1e-300), torch.zeros_like(shared))
    return nominal * gain.clamp_min(0.0)[:, None]
