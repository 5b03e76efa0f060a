# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading hyperspectral cubes for training: whole, in memory, without empty, bad or clipped bands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import rasterio
import torch
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from ..io.raster import MIN_HS_BANDS, open_input
from ..io.source import RasterSource
from ..simulation.response import assumed_wavelengths

MIN_SIDE = 24
"""Pixels along a side that a cube needs to give a pair."""
EMPTY_SHARE = 0.9
"""A band without data in this share of its pixels is left out; others share one mask."""


LARGEST = 1e30
"""Values beyond this are a nodata value that the file does not state, as float32's least is by custom."""


@dataclass
class Cube:
    """A cube in memory.

    Attributes:
        name: for messages.
        image: `[bands, rows, cols]` float32, 0 where invalid.
        mask: `[rows, cols]`, True where valid.
        wavelength_nm: `[bands]` float64; assumed where the file states none.
    """

    name: str
    image: Tensor
    mask: Tensor
    wavelength_nm: Tensor


def read_cube(path: str | Path) -> Cube:
    """Read a cube.

    Raises:
        HyperSharpError: not readable, too small, or hardly any usable band.
    """
    with rasterio.Env():
        dataset, info = open_input(str(path), "training cube")
        with dataset:
            source = RasterSource(dataset, info, 0, 0, (info.height, info.width))
            values, valid = source.read_samples((0, info.height), (0, info.width))
    valid = valid & (values.abs() < LARGEST)
    shares = valid.flatten(1).float().mean(dim=1)
    keep = torch.tensor(info.bands.good) & (shares > (1 - EMPTY_SHARE) * shares.max())
    if bool(keep.any()):
        common = valid[keep].all(dim=0)
        inner = values[:, common]
        spread = inner.std(dim=1) if inner.shape[1] > 1 else torch.zeros(len(values))
        keep &= spread > 1e-6 * inner.abs().amax(dim=1).clamp_min(1e-30)
    if int(keep.sum()) < MIN_HS_BANDS or min(values.shape[1:]) < MIN_SIDE:
        raise HyperSharpError(
            f"{Path(path).name} is no use for training: {int(keep.sum())} usable bands, "
            f"{info.width} x {info.height} pixels",
            f"it needs {MIN_HS_BANDS} bands and {MIN_SIDE} pixels along each side",
        )
    wavelengths = info.bands.wavelength_nm
    if any(w is None for w in wavelengths):
        wavelengths = list(assumed_wavelengths(info.count)[0])
    mask = valid[keep].all(dim=0)
    image = torch.where(mask, values[keep], torch.zeros(()))
    return Cube(
        Path(path).stem,
        image,
        mask,
        torch.tensor([float(w or 0) for w in wavelengths], dtype=torch.float64)[keep],
    )


def read_cubes(folder: str | Path, leave_out: tuple[str, ...] = ()) -> list[Cube]:
    """Read every raster of a folder that can serve, in the order of their names.

    Args:
        folder: with GeoTIFF (.tif, .tiff) or ENVI (.dat, .img, .bsq, .bil, .bip) files.
        leave_out: name beginnings of cubes kept out of training.

    Raises:
        HyperSharpError: no such folder, or not a single cube of use in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HyperSharpError(
            f"{folder} is no folder", "give a folder with hyperspectral rasters", ErrorCode.USAGE
        )
    kinds = {".tif", ".tiff", ".dat", ".img", ".bsq", ".bil", ".bip"}
    cubes, reasons = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in kinds or path.name.startswith(leave_out or ("\0",)):
            continue
        try:
            cubes.append(read_cube(path))
        except HyperSharpError as error:
            reasons.append(error.message)
    if not cubes:
        raise HyperSharpError(
            f"there is no cube to train on in {folder}" + (f": {reasons[0]}" if reasons else ""),
            "put hyperspectral GeoTIFF or ENVI files there",
        )
    return cubes
