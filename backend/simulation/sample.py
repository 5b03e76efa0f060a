# SPDX-License-Identifier: GPL-2.0-or-later
"""The sample scene as a file."""

from __future__ import annotations

import os

import rasterio
from affine import Affine

from .pair import tag_band
from .scene import SCALE, make_scene


def write_scene(path: str | os.PathLike[str], rows: int = 240, cols: int = 240, seed: int = 0) -> str:
    """Write the sample scene as an int16 GeoTIFF of reflectance x 10000 and return its path.

    Args:
        path: file to write.
        rows: height in pixels.
        cols: width in pixels.
        seed: another seed is another village.
    """
    scene = make_scene(rows, cols, seed)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=cols,
        height=rows,
        count=len(scene.wavelengths_nm),
        dtype="int16",
        nodata=-9999,
        crs=scene.crs,
        transform=Affine(*scene.transform),
        compress="deflate",
        predictor=2,
    ) as file:
        file.write(scene.cube.numpy())
        file.update_tags(
            title="HyperSharp sample scene (simulated: no such place exists)", reflectance_scale=str(SCALE)
        )
        for index, (wavelength, fwhm) in enumerate(zip(scene.wavelengths_nm, scene.fwhm_nm)):
            tag_band(file, index + 1, wavelength, fwhm, None)
    return os.fspath(path)
