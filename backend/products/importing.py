# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a product's images as GeoTIFFs: reflectance in 1/10,000, as EnMAP and Sentinel-2 deliver it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rasterio
import torch

from ..control import Control
from ..errors import HyperSharpError
from ..io.raster import georeference_optional
from ..io.writer import BLOCK, FusedWriter, check_output, default_nodata, make_folder, partial_output
from ..job import ImportJob
from ..protocol import Result
from .emit import find_emit
from .hdf import open_hdf
from .prisma import find_prisma
from .product import Product, ProductImage

READERS = (find_prisma, find_emit)
"""Each returns the product that a file is, or None where it is of another sensor."""
DTYPE, SCALE = "int16", 10_000
COMPRESS = "deflate"
WINDOW_BYTES, GDAL_CACHE_BYTES = 256 * 2**20, 128 * 2**20
"""Of a window's float32 values, and of what GDAL keeps of the file."""
NO_SIGNAL = 0.5
"""A band that is 0 on more than this share of what is valid is marked as bad: no light reaches the ground in it."""


def run_import(job: ImportJob, control: Control | None = None) -> Result:
    """Write a product's hyperspectral image, and its panchromatic one where that is wanted, as GeoTIFFs.

    Pixels are reflectances in 1/10,000 (int16), nodata where the product holds nothing in any band; bands are in
    ascending order, with wavelength, width, and a mark on those without signal. GDAL's own scale is not used: QGIS 3.44
    finds no stretch for whole numbers that have one.

    Raises:
        HyperSharpError: no product that is known, or an output that cannot be written. Nothing is left half written.
        Cancelled: `control` stopped it; nothing was written.
    """
    control = control or Control()
    if not os.path.isfile(job.product):
        raise HyperSharpError(
            f"product not found: {job.product}", "check the path; name the .he5 or .nc file itself"
        )
    targets = {"HS": job.hs} | ({"PAN": job.pan} if job.pan else {})
    if job.pan and os.path.abspath(job.pan) == os.path.abspath(job.hs):
        raise HyperSharpError("both images would go into the same file", "name two files")
    with open_hdf(job.product) as file, ExitStack() as stack:
        product = _find(file, job.product)
        images = {"HS": product.hs}
        if job.pan and product.pan is not None:
            images["PAN"] = product.pan
        elif job.pan:
            if product.lacks_pan:
                product.warnings.append(
                    "the product holds no panchromatic image: there is the hyperspectral one alone"
                )
            del targets["PAN"]
        for key, image in images.items():
            make_folder(os.path.dirname(os.path.abspath(targets[key])))
            check_output(targets[key], [job.product], image.rows * image.cols * len(image.bands.good))
        for text in product.warnings:
            control.warn(text)
        control.plan({"HS image": 6.0, **({"PAN image": 1.0} if "PAN" in images else {})})
        described = {}
        for key, image in images.items():
            part = stack.enter_context(partial_output(targets[key]))
            silent = _write(image, product, part, f"{key} image", control)
            described[key] = {"bands": len(image.bands.good), "rows": image.rows, "cols": image.cols}
            described[key] |= {"bands_without_signal": silent}
    return Result(
        targets,
        {"import": {"product": Path(job.product).name, "images": described}, "warnings": control.warnings},
        control.warnings,
    )


def _find(file: Any, path: str) -> Product:
    """Return the product that a file is; an error where no reader knows it."""
    for find in READERS:
        product = find(file, path)
        if product is not None:
            return product
    raise HyperSharpError(
        f"{path} is no product that can be imported",
        "name a PRISMA product (PRS_L2D_....he5) or EMIT's reflectance (EMIT_L2A_RFL_....nc)",
    )


def _write(image: ProductImage, product: Product, part: Path, stage: str, control: Control) -> list[int]:
    """Write an image window by window; return the bands (from 1) that hold hardly any signal."""
    count = len(image.bands.good)
    nodata = default_nodata(DTYPE)
    known, lit = 0, torch.zeros(count, dtype=torch.long)
    width = BLOCK * max(1, WINDOW_BYTES // (4 * count * BLOCK * BLOCK))
    windows = [
        ((row, min(row + BLOCK, image.rows)), (col, min(col + width, image.cols)))
        for row in range(0, image.rows, BLOCK)
        for col in range(0, image.cols, width)
    ]
    with (
        georeference_optional(),
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
        FusedWriter(
            part,
            (count, image.rows, image.cols),
            DTYPE,
            product.crs,
            image.transform,
            nodata,
            image.bands,
            {**product.tags, "reflectance_scale": str(SCALE)},
            compress=COMPRESS,
        ) as writer,
    ):
        for rows, cols in control.steps(windows, stage, len(windows)):
            values, mask = image.read(rows, cols)
            known += int(mask.sum())
            lit += torch.stack([((v > low) & mask).sum() for v, low in zip(values, image.floor)])
            writer.write(rows[0], cols[0], values.mul_(SCALE), mask)
    if not known:
        raise HyperSharpError("the product holds nothing but nodata", "choose another product")
    return _mark(part, image, (lit < (1.0 - NO_SIGNAL) * known).nonzero().flatten().tolist(), control)


def _mark(part: Path, image: ProductImage, silent: list[int], control: Control) -> list[int]:
    """Mark bands (from 0) as bad; return them from 1."""
    numbers = [band + 1 for band in silent]
    if numbers:
        with georeference_optional(), rasterio.open(part, "r+") as dataset:
            for number in numbers:
                dataset.update_tags(number, bbl="0")
        names = ", ".join(image.bands.descriptions[band] or str(band + 1) for band in silent)
        control.info(f"marked as bad, without signal on most of the scene: {names}")
    return numbers
