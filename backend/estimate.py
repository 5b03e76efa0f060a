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
SIDES_WITH_CONTEXT = (128, 256, 384, 512, 768)
"""Sides of tiles of a method that computes on its context: for more than the last a cancel would wait too long."""
NEARLY = 1.1
"""What needs less than this times the least memory is taken to need the same."""
IMAGE_COPIES = 2.75
"""Images of a tile that such a method holds at once while it makes one, as measured: what it makes, what for, and
what is on its way to the disk."""
TILE_CACHE_BYTES = 96 * 2**20
"""What such a method may keep from tile to tile."""
NETWORK_PIXEL_BYTES = 2000
"""Working memory of a network for each pixel, in bytes; tiles keep it to the bound."""
PLANES_PIXEL_BYTES = 900
"""The part of it that is needed on all of a tile's context, not only where the network runs."""
CONTEXT_COST = 0.15
"""Share of a learned method's time that its planes take, and that its network takes: what tiles compute again."""
ADAPT_START_SECONDS = 4.0
"""What adaptation takes beside its steps: making the pair one scale down, and validating on it."""
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


@dataclass(frozen=True)
class TileNeeds:
    """What a method needs to fuse a tile that computes on more than the tile itself; see `FusionMethod`.

    Attributes:
        context: fine pixels beyond a tile that its values depend on; with `pixel_bytes`, on which it computes too.
        pixel_bytes: memory for each fine pixel of a tile and its context, beside the tile's result and the guide.
        inner_context, inner_bytes: the same once more, nearer to the tile.
        fixed_bytes: memory of a step that does not grow with the tile and has ended before the others are needed.
    """

    context: int = 0
    pixel_bytes: int = 0
    inner_context: int = 0
    inner_bytes: int = 0
    fixed_bytes: int = 0


def choose_tile(
    bands: int,
    guide_bands: int,
    memory_gb: float,
    needs: TileNeeds = TileNeeds(),
    size: tuple[int, int] | None = None,
) -> int:
    """Return the side of an output tile, a multiple of 256 as a rule, that keeps to the memory bound.

    Small tiles stay in the processor's cache and let writing overlap with computing; a method that looks far beyond a
    tile gets larger ones, so that it does not compute everything twice. One that computes on all of the context
    (`pixel_bytes`: a network) gets those with the least to compute.

    Args:
        bands, guide_bands: of the images.
        memory_gb: bound of working memory in GiB.
        needs: of the method.
        size: rows and cols of the whole result, where known.
    """
    budget = max(memory_gb * 2**30 - BASE_MEMORY_BYTES, 0.15 * memory_gb * 2**30)
    if needs.pixel_bytes:
        return _tile_with_context(bands, guide_bands, memory_gb, budget, needs, size or (8192, 8192))
    tile = 256
    budget -= needs.fixed_bytes
    while tile < min(1024, 3 * needs.context) and tile_bytes(bands, guide_bands, tile + 256) < 0.5 * budget:
        tile += 256
    return tile


def cache_bytes(memory_gb: float) -> int:
    """Return GDAL's block cache: enough for one row of blocks to be reused, never a large share of the memory."""
    return int(min(256 * 2**20, 0.1 * memory_gb * 2**30))


def _tile_with_context(
    bands: int,
    guide_bands: int,
    memory_gb: float,
    budget: float,
    needs: TileNeeds,
    size: tuple[int, int],
) -> int:
    """Return the side with the least to compute, contexts counted, that keeps to `budget` bytes."""
    rows, cols = size

    def area(side: int, context: int) -> int:
        return min(side + 2 * context, rows) * min(side + 2 * context, cols)

    def needed(side: int) -> float:
        wide = area(side, needs.context)
        result = 4 * bands * min(side, rows) * min(side, cols)
        inner = needs.inner_bytes * area(side, needs.inner_context)
        held = max(needs.fixed_bytes, needs.pixel_bytes * wide + inner)
        # From the second tile on there are caches, and the one before is on its way to the disk.
        before = 0 if side >= max(rows, cols) else cache_bytes(memory_gb) + TILE_CACHE_BYTES + result
        return 4 * 8 * guide_bands * wide + max(IMAGE_COPIES * result, before + result + held)

    def computed(side: int) -> float:
        wide, inner = (
            _widened(rows, side, context) * _widened(cols, side, context)
            for context in (needs.context, needs.inner_context)
        )
        return needs.pixel_bytes * wide + needs.inner_bytes * inner

    sides = [side for side in SIDES_WITH_CONTEXT if needed(side) < budget]
    if not sides:  # the least that can be had; where the context covers the scene all sides need the same
        least = min(needed(side) for side in SIDES_WITH_CONTEXT)
        sides = [side for side in SIDES_WITH_CONTEXT if needed(side) <= NEARLY * least]
    return min(sides, key=computed)


def _times_computed(
    bands: int, guide_bands: int, memory_gb: float, size: tuple[int, int], ratio: int, reach: tuple[int, int]
) -> float:
    """Return how much longer a network takes by tiles, which compute their contexts too, than in one piece."""
    wide, inner = (coarse * ratio for coarse in reach)
    needs = TileNeeds(wide, PLANES_PIXEL_BYTES, inner, NETWORK_PIXEL_BYTES - PLANES_PIXEL_BYTES)
    side = choose_tile(bands, guide_bands, memory_gb, needs, size)
    pixels = max(1, size[0] * size[1])
    again = sum(_widened(size[0], side, c) * _widened(size[1], side, c) / pixels - 1 for c in (wide, inner))
    return 1 + CONTEXT_COST * again


def _widened(length: int, side: int, context: int) -> int:
    """Return the sum over the tiles along an axis of their lengths with context."""
    whole, rest = divmod(length, side)
    starts = [i * side for i in range(whole + (rest > 0))]
    return sum(min(length, start + side + context) - max(0, start - context) for start in starts)


def estimate(
    bands: int,
    guide_bands: int,
    rows: int,
    cols: int,
    dtype: str = "float32",
    memory_gb: float = 2.0,
    relative_cost: float = 1.0,
    assess: bool = True,
    ratio: int = 0,
    network_seconds: float = 0.0,
    network_reach: tuple[int, int] = (0, 0),
    adapt_steps: int = 0,
    adapt_seconds: float = 0.0,
) -> Estimate:
    """Return what fusing to `[bands, rows, cols]` of `dtype` will need, on two CPU cores.

    The disk estimate is the uncompressed size, an upper bound for what compression leaves.

    Args:
        bands, rows, cols, dtype: of the result.
        guide_bands: of the guide.
        memory_gb: bound of working memory in GiB.
        relative_cost, network_seconds, network_reach, adapt_seconds: of the method (`registry.MethodInfo`).
        assess: indices are computed, for which a method is fitted and run again one scale (`ratio`) down.
        ratio: of the pixel sizes.
        adapt_steps: training steps on the pair.
    """
    values = bands * rows * cols
    tile = min(choose_tile(bands, guide_bands, memory_gb), max(rows, cols, 1))
    memory = BASE_MEMORY_BYTES + 2 * tile_bytes(bands, guide_bands, tile)
    if network_seconds:
        memory += NETWORK_PIXEL_BYTES * rows * cols
    memory = min(memory, int(memory_gb * 2**30))
    seconds = START_SECONDS + relative_cost * values / VALUES_PER_SECOND_GSA
    network = network_seconds * rows * cols / 1e6
    if ratio:
        network *= _times_computed(bands, guide_bands, memory_gb, (rows, cols), ratio, network_reach)
    network += ADAPT_START_SECONDS + adapt_steps * adapt_seconds if adapt_steps else 0.0
    if assess:
        seconds += values / VALUES_PER_SECOND_ASSESSED
        # One scale down there are fewer pixels, but as many steps.
        again = network_seconds * rows * cols / 1e6 / max(1, ratio) ** 2
        network += again + (ADAPT_START_SECONDS + adapt_steps * adapt_seconds if adapt_steps else 0.0)
    seconds += network
    return Estimate(memory, values * BYTES.get(dtype, 4), seconds)
