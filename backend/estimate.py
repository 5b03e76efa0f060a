# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fusion will need: ratio, memory, disk and time, from raster sizes alone and before anything is read.

Contract module: standard library only, Python 3.9 syntax. QGIS and the backend both import it.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_RATIO = 1.5
"""A guide whose pixels are not at least this much smaller has no detail to give."""
BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4, "float64": 8}
VALUES_PER_SECOND_GSA = 60e6
"""Fused values a second of `gsa`, writing included, on two CPU cores (docs/benchmarks.md)."""
VALUES_PER_SECOND_ASSESSED = 7e6
"""Fused values a second that all quality indices, with their control, take on two CPU cores."""
START_SECONDS = 3.0
"""Start of the worker: Python, torch, GDAL."""
BASE_MEMORY_BYTES = 450_000_000
"""Resident size of the worker before it reads anything (Python, torch, GDAL), in bytes."""


@dataclass(frozen=True)
class Estimate:
    """Estimates of one fusion: bytes of working memory and of disk, seconds."""

    memory_bytes: int
    disk_bytes: int
    seconds: float


def integer_ratio(hs_pixel: float, guide_pixel: float) -> int:
    """Return the integer nearest to the true ratio of two pixel sizes (at least 1)."""
    return max(1, round(hs_pixel / guide_pixel))


def tile_bytes(bands: int, guide_bands: int, tile: int) -> int:
    """Return the working memory of one output tile in bytes: interpolated HS, result, written copy, guide."""
    return 4 * tile * tile * (4 * bands + 8 * guide_bands)


def choose_tile(bands: int, guide_bands: int, memory_gb: float, context: int = 0) -> int:
    """Return the side of an output tile, a multiple of 256, that keeps to the memory bound.

    Small tiles stay in the processor's cache and let writing overlap with computing; a method that looks
    `context` fine pixels beyond a tile gets larger ones, so that it does not compute everything twice.
    """
    budget = max(memory_gb * 2**30 - BASE_MEMORY_BYTES, 0.15 * memory_gb * 2**30)
    tile = 256
    while tile < min(1024, 3 * context) and tile_bytes(bands, guide_bands, tile + 256) < 0.5 * budget:
        tile += 256
    return tile


def estimate(
    bands: int,
    guide_bands: int,
    rows: int,
    cols: int,
    dtype: str = "float32",
    memory_gb: float = 2.0,
    relative_cost: float = 1.0,
    assess: bool = True,
) -> Estimate:
    """Return what fusing to `[bands, rows, cols]` of `dtype` will need.

    The disk estimate is the uncompressed size, an upper bound for what compression leaves.
    """
    values = bands * rows * cols
    tile = min(choose_tile(bands, guide_bands, memory_gb), max(rows, cols, 1))
    memory = min(BASE_MEMORY_BYTES + 2 * tile_bytes(bands, guide_bands, tile), int(memory_gb * 2**30))
    seconds = START_SECONDS + relative_cost * values / VALUES_PER_SECOND_GSA
    if assess:
        seconds += values / VALUES_PER_SECOND_ASSESSED
    return Estimate(memory, values * BYTES.get(dtype, 4), seconds)
