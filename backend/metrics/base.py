# SPDX-License-Identifier: GPL-2.0-or-later
"""What every quality index is: a class that is reset, updated tile by tile, and computed once.

Arrays are `[bands, rows, cols]`, masks are `[rows, cols]` and True where a pixel is valid. Tiles do not
overlap in their cores, and a core starts at a multiple of 32 pixels, so that block indices see the same
blocks however the scene is cut. What lies under the mask never enters any arithmetic.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, ClassVar, Optional

import torch
from torch import Tensor

from ..errors import HyperSharpError

Core = tuple[slice, slice]
"""(rows, cols) of a tile's part that counts; the rest is context."""

BLOCK = 32
"""Side of the blocks of UIQI and Q2n and of all full-resolution indices on the coarse grid, in pixels."""
MIN_BLOCK_PIXELS = 64
"""A block with fewer valid pixels is left out (8 x 8 is the smallest window of Wang and Bovik)."""
CHUNK_VALUES = 500_000
"""Values of one image that are worked on at once on a CPU."""
CHUNK_VALUES_CUDA = 64_000_000
"""The same on a CUDA device."""
RELATIVE_ZERO = 1e-6
"""A spread (or mean) this small beside the values themselves is float32 rounding, hence zero."""


@dataclass(frozen=True)
class MetricValue:
    """One index's result.

    Attributes:
        value: the index, always finite, or None when it cannot be computed.
        reason: why `value` is None, or what was left out of it; None when there is nothing to say.
        per_band: the index of each band (None where it has none), or None for an index without bands.
    """

    value: Optional[float]
    reason: Optional[str] = None
    per_band: Optional[list[Optional[float]]] = None


@dataclass(frozen=True)
class MetricInfo:
    """What an index is, in words, for reports and docs.

    Attributes:
        key: name in metrics.json.
        variant: the exact form, in one line.
        better: "higher" or "lower".
        range: the values that it can take, with the unit.
        source: the paper.
        full_reference: needs a true reference; otherwise it is computed from the inputs of the fusion.
    """

    key: str
    variant: str
    better: str
    range: str
    source: str
    full_reference: bool


class Metric(ABC):
    """A quality index.

    Class attributes:
        key: name in metrics.json.
        variant: the exact form, in one line.
        better: "higher" or "lower".
        range: the values that it can take, with the unit.
        source: the paper.

    `halo` is the context in pixels that a tile needs around its core (fine pixels for no-reference indices).
    """

    key: ClassVar[str]
    variant: ClassVar[str]
    better: ClassVar[str]
    range: ClassVar[str]
    source: ClassVar[str]
    full_reference: ClassVar[bool] = True
    halo: int = 0

    @abstractmethod
    def reset(self) -> None:
        """Forget every tile."""

    @abstractmethod
    def compute(self) -> MetricValue:
        """Return the index of all tiles so far; finite or None with a reason, never NaN."""

    @classmethod
    def info(cls) -> MetricInfo:
        """Return what the index is, in words."""
        return MetricInfo(cls.key, cls.variant, cls.better, cls.range, cls.source, cls.full_reference)


class FullReferenceMetric(Metric):
    """An index that compares a fused image with the true one."""

    def update(self, fused: Tensor, reference: Tensor, mask: Tensor, core: Optional[Core] = None) -> None:
        """Add a tile.

        Args:
            fused: `[bands, rows, cols]`, any unit, any floating dtype and device.
            reference: the truth, same shape, unit and device.
            mask: `[rows, cols]` bool, True where a pixel is valid.
            core: the (row, column) slices of the part that counts; None for the whole tile.

        Raises:
            HyperSharpError: shapes or dtypes that do not fit.
        """
        tile = PairTile(fused, reference, mask, core)
        for part in tile.chunks() if self.halo == 0 else (tile,):
            self.update_tile(part)

    @abstractmethod
    def update_tile(self, tile: PairTile) -> None:
        """Add a tile (a chunk of one, for an index without halo) whose results other indices share."""


class NoReferenceMetric(Metric):
    """An index that needs no truth: it compares the fused image with the images that it was made from.

    Args:
        ratio: integer ratio of the pixel sizes of HS and guide, at least 2.
        assignment: `[bands]` index of the guide band that stands for each HS band (the one with the highest
            absolute correlation on the coarse grid); None when the guide has one band.
    """

    full_reference: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    """Needs the covariances of all pairs of bands."""

    def __init__(self, ratio: int, assignment: Optional[Tensor] = None) -> None:
        if ratio < 2:
            raise HyperSharpError(
                f"full-resolution indices need a ratio of at least 2, not {ratio}",
                "use a guide with finer pixels",
            )
        self.ratio = int(ratio)
        self.assignment = assignment
        self.reset()

    def update(
        self,
        fused: Tensor,
        guide: Tensor,
        mask: Tensor,
        fused_lr: Tensor,
        hs: Tensor,
        guide_lr: Tensor,
        mask_lr: Tensor,
        core: Optional[Core] = None,
    ) -> None:
        """Add a tile, seen on both grids.

        The fine core starts at a multiple of `32 * ratio`, the coarse tile is the same ground without halo.

        Args:
            fused: `[bands, rows, cols]`, the fused image on the fine grid, core and halo.
            guide: `[guide bands, rows, cols]`, the guide on the same pixels.
            mask: `[rows, cols]` bool, valid pixels of both.
            fused_lr: `[bands, coarse rows, coarse cols]`, the fused image degraded to the coarse grid,
                core only.
            hs: the original HS image on the same pixels.
            guide_lr: `[guide bands, coarse rows, coarse cols]`, the guide degraded likewise.
            mask_lr: `[coarse rows, coarse cols]` bool, valid pixels of all three.
            core: (row, column) slices of the fine tile's core; None for the whole tile.

        Raises:
            HyperSharpError: shapes or dtypes that do not fit.
        """
        tile = ResolutionTile(
            fused, guide, mask, fused_lr, hs, guide_lr, mask_lr, core, self.ratio, self.assignment
        )
        self.update_tile(tile)

    @abstractmethod
    def update_tile(self, tile: ResolutionTile) -> None:
        """Add a tile whose intermediate results are shared with other indices."""


class PairTile:
    """Fused and reference of one tile, checked, with the results that several indices share."""

    def __init__(self, fused: Tensor, reference: Tensor, mask: Tensor, core: Optional[Core] = None) -> None:
        if fused.shape != reference.shape:
            raise HyperSharpError(
                f"fused {shape_text(fused)} and reference {shape_text(reference)} differ in size",
                "compare rasters of the same bands, rows and columns",
            )
        check_cube("fused", fused)
        check_cube("reference", reference)
        check_mask(mask, fused)
        self.fused, self.reference, self.mask = fused, reference, mask
        self.core: Core = core if core is not None else (slice(None), slice(None))
        self._shared: dict[str, Any] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def bands(self) -> int:
        """Number of bands."""
        return int(self.fused.shape[0])

    @property
    def fused_core(self) -> Tensor:
        """The fused image's part that counts, `[bands, rows, cols]`."""
        return self.fused[:, self.core[0], self.core[1]]

    @property
    def reference_core(self) -> Tensor:
        """The reference's part that counts, `[bands, rows, cols]`."""
        return self.reference[:, self.core[0], self.core[1]]

    @property
    def mask_core(self) -> Tensor:
        """The valid pixels of the part that counts, `[rows, cols]`."""
        return self.mask[self.core]

    def chunks(self) -> Iterator[PairTile]:
        """Yield the core in pieces of whole blocks, so small that float64 copies fit a CPU's cache.

        Each piece uses the working memory of the one before: be done with one before taking the next.
        """
        fused, reference, mask = self.fused_core, self.reference_core, self.mask_core
        limit = CHUNK_VALUES_CUDA if fused.is_cuda else CHUNK_VALUES
        blocks = max(1, limit // (self.bands * BLOCK * BLOCK))
        rows, cols = mask.shape
        width = BLOCK * min(blocks, math.ceil(cols / BLOCK))
        height = BLOCK * max(1, blocks * BLOCK // width)
        for row in range(0, rows, height):
            for col in range(0, cols, width):
                part = (slice(row, row + height), slice(col, col + width))
                chunk = PairTile(fused[:, part[0], part[1]], reference[:, part[0], part[1]], mask[part])
                chunk._buffers = self._buffers
                yield chunk

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return working memory of float64, not cleared, that the next chunk gets as well.

        Fresh memory for every chunk costs more time (page faults) than the arithmetic.
        """
        size = math.prod(shape)
        found = self._buffers.get(name)
        if found is None or found.numel() < size:
            found = torch.empty(size, dtype=torch.float64, device=self.fused.device)
            self._buffers[name] = found
        return found[:size].view(shape)

    def shared(self, name: str, make: Callable[[Any], Any]) -> Any:
        """Return what `make(self)` returned the first time that `name` was asked for."""
        if name not in self._shared:
            self._shared[name] = make(self)
        return self._shared[name]


class ResolutionTile:
    """One tile on both grids, checked, with the results that several no-reference indices share."""

    def __init__(
        self,
        fused: Tensor,
        guide: Tensor,
        mask: Tensor,
        fused_lr: Tensor,
        hs: Tensor,
        guide_lr: Tensor,
        mask_lr: Tensor,
        core: Optional[Core],
        ratio: int,
        assignment: Optional[Tensor],
    ) -> None:
        for name, cube in (("fused", fused), ("guide", guide), ("degraded fused", fused_lr), ("hs", hs)):
            check_cube(name, cube)
        check_cube("degraded guide", guide_lr)
        for cube in (fused, guide):
            check_mask(mask, cube)
        for cube in (fused_lr, hs, guide_lr):
            check_mask(mask_lr, cube)
        if not fused.shape[0] == fused_lr.shape[0] == hs.shape[0]:
            raise HyperSharpError(
                f"fused has {fused.shape[0]} bands and the HS {hs.shape[0]}", "compare the same bands"
            )
        if guide.shape[0] != guide_lr.shape[0]:
            raise HyperSharpError(
                "the guide and its degraded form differ in bands", "degrade every guide band"
            )
        self.fused, self.guide, self.mask = fused, guide, mask
        self.fused_lr, self.hs, self.guide_lr, self.mask_lr = fused_lr, hs, guide_lr, mask_lr
        self.core: Core = core if core is not None else (slice(None), slice(None))
        self.ratio = ratio
        rows, cols = mask[self.core].shape
        coarse = tuple(mask_lr.shape)
        if (math.ceil(rows / ratio), math.ceil(cols / ratio)) != coarse:
            raise HyperSharpError(
                f"a core of {rows} x {cols} pixels at ratio {ratio} does not lie on "
                f"{coarse[0]} x {coarse[1]} coarse pixels",
                "give the coarse tile of the same ground",
            )
        if assignment is None:
            assignment = self.single_guide(guide, hs.shape[0])
        if assignment.shape != hs.shape[:1] or not 0 <= int(assignment.min()) <= int(assignment.max()) < len(
            guide
        ):
            raise HyperSharpError("the assignment does not fit the bands", "give one guide band per HS band")
        self.assignment = assignment.to(device=fused.device, dtype=torch.long)
        self._shared: dict[str, Any] = {}

    shared = PairTile.shared

    @staticmethod
    def single_guide(guide: Tensor, bands: int) -> Tensor:
        """Return the assignment of every band to the guide's only band.

        Raises:
            HyperSharpError: the guide has several bands.
        """
        if guide.shape[0] != 1:
            raise HyperSharpError(
                f"a guide of {guide.shape[0]} bands needs an assignment of its bands to the HS bands",
                "assign each HS band the guide band that it correlates with most",
            )
        return torch.zeros(bands, dtype=torch.long)


def check_cube(name: str, cube: Tensor) -> None:
    """Refuse anything but a floating `[bands, rows, cols]` tensor.

    Raises:
        HyperSharpError: other rank or dtype, or no band.
    """
    if cube.ndim != 3 or cube.shape[0] == 0:
        raise HyperSharpError(f"{name} is {shape_text(cube)}", "give [bands, rows, cols]")
    if not cube.is_floating_point():
        raise HyperSharpError(f"{name} holds {cube.dtype}", "convert it to float32 first")


def check_mask(mask: Tensor, cube: Tensor) -> None:
    """Refuse a mask that is no bool `[rows, cols]` of the cube.

    Raises:
        HyperSharpError: other shape or dtype.
    """
    if mask.dtype != torch.bool or mask.shape != cube.shape[1:]:
        raise HyperSharpError(
            f"the mask {shape_text(mask)} of {mask.dtype} does not fit {shape_text(cube)}",
            "give bool [rows, cols], True where valid",
        )


def shape_text(tensor: Tensor) -> str:
    """Return a shape as people write it."""
    return "[" + ", ".join(str(n) for n in tensor.shape) + "]"


def bands_text(bands: Tensor) -> str:
    """Return the band numbers (from 1) where a bool `[bands]` is True, shortened when there are many."""
    numbers = [str(int(i) + 1) for i in bands.nonzero().flatten()]
    shown = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"band{'s' if len(numbers) > 1 else ''} {shown}"
