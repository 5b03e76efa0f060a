"""Small rasters made by code."""

import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

sys.path.insert(0, str(Path(__file__).parent))
from scenes import smooth_scene

FINE = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)


def write_raster(
    path, image, transform=FINE, crs="EPSG:32631", nodata=None, wavelengths=None, tags=None, **profile
):
    """Write `[bands, rows, cols]` as a GeoTIFF; return its path as text."""
    image = np.asarray(image)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=image.shape[0],
        height=image.shape[1],
        width=image.shape[2],
        dtype=image.dtype,
        crs=crs,
        transform=transform,
        nodata=nodata,
        **profile,
    ) as dataset:
        dataset.write(image)
        for index, wavelength in enumerate(wavelengths or [], start=1):
            if wavelength is not None:
                dataset.update_tags(index, wavelength=str(wavelength), wavelength_units="Nanometers")
        if tags:
            dataset.update_tags(**tags)
    return str(path)


@pytest.fixture
def make_raster(tmp_path):
    """Return `write_raster` into the test's folder, by file name."""

    def make(name, image, **options):
        return write_raster(tmp_path / name, image, **options)

    return make


@pytest.fixture
def pair_files(make_raster):
    """Return a function that writes an aligned pair and returns (hs path, guide path, truth)."""

    def make(bands=8, rows=40, cols=36, ratio=4, guide_bands=1, dtype="uint16", seed=0, **hs_options):
        import torch
        from hypersharp.backend.degradation import degrade

        truth = smooth_scene(bands, rows * ratio, cols * ratio, seed)
        coarse = degrade(torch.from_numpy(truth).float(), ratio, 0.3)[0].numpy()
        groups = np.array_split(np.arange(bands), guide_bands)
        guide = np.stack([truth[g].mean(axis=0) for g in groups])
        rounded = np.rint if np.dtype(dtype).kind in "iu" else (lambda v: v)
        wavelengths = list(np.linspace(450, 2300, bands))
        hs = make_raster(
            "hs.tif",
            rounded(coarse).astype(dtype),
            transform=FINE * Affine.scale(ratio),
            wavelengths=hs_options.pop("wavelengths", wavelengths),
            **hs_options,
        )
        return hs, make_raster("guide.tif", rounded(guide).astype(dtype)), truth

    return make
