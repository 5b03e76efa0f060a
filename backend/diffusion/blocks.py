# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks of a scene that is too large to be drawn as one: where they lie, how they blend, and their noise.

A block is drawn as a scene of its own, so that memory does not grow with the scene. Blocks overlap and are blended;
in the overlap both see the same data and, because the noise is a function of the place, the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ..degradation import Range

BLEND = 64
"""Fine pixels over which two blocks are blended, at least: beyond the reach of the network's blending tiles, so that
what a block makes of its border does not show."""
CELL = 128
"""Side, in fine pixels, of the cells that noise is drawn in."""


@dataclass(frozen=True)
class Layout:
    """Blocks in coarse pixels: every one of `rows` with every one of `cols`.

    Attributes:
        rows, cols: what is drawn; neighbours overlap.
        guard: coarse pixels at a border within the scene that are drawn but not used.
        ratio: fine pixels per coarse pixel.
    """

    rows: list[Range]
    cols: list[Range]
    guard: int
    ratio: int

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    @property
    def largest(self) -> tuple[int, int]:
        """Most fine rows and columns of a block."""
        sides = (max(b - a for a, b in spans) * self.ratio for spans in (self.rows, self.cols))
        return next(sides), next(sides)

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the weights of every block's fine rows and columns; over all blocks they sum to one."""
        return _weights(self.rows, self.guard, self.ratio), _weights(self.cols, self.guard, self.ratio)


def one_block(shape: tuple[int, int], ratio: int) -> Layout:
    """Return the layout of a scene of `shape` coarse pixels that is drawn as a whole."""
    return Layout([(0, shape[0])], [(0, shape[1])], 0, ratio)


def block_layout(shape: tuple[int, int], ratio: int, side: int, guard: int) -> Layout:
    """Return the blocks of a scene.

    Args:
        shape: coarse rows and columns of the scene.
        ratio: fine pixels per coarse pixel.
        side: most fine pixels of a block's side (more where the overlap alone would take most of it).
        guard: coarse pixels at a block's border, within the scene, that are not to be used.
    """
    overlap = -(-BLEND // ratio) + 2 * guard
    most = max(side // ratio, 3 * overlap)
    rows, cols = (_spans(size, most, overlap) for size in shape)
    return Layout(rows, cols, guard, ratio)


def _spans(size: int, most: int, overlap: int) -> list[Range]:
    """Return ranges of equal length, at most `most`, that cover `size` and overlap by at least `overlap`."""
    if size <= most:
        return [(0, size)]
    count = -(-(size - overlap) // (most - overlap))
    length = -(-(size + (count - 1) * overlap) // count)
    starts = [i * (size - length) // (count - 1) for i in range(count)]
    return [(start, start + length) for start in starts]


def _weights(spans: list[Range], guard: int, ratio: int) -> list[Tensor]:
    size = spans[-1][1]
    total = torch.zeros(size * ratio, dtype=torch.float64)
    raw = []
    for i, (start, stop) in enumerate(spans):
        weight = torch.ones((stop - start) * ratio, dtype=torch.float64)
        if i > 0:
            weight *= _rise(len(weight), spans[i - 1][1] - start, guard, ratio)
        if i + 1 < len(spans):
            weight *= _rise(len(weight), stop - spans[i + 1][0], guard, ratio).flip(0)
        total[start * ratio : stop * ratio] += weight
        raw.append(weight)
    return [(w / total[a * ratio : b * ratio]).float() for w, (a, b) in zip(raw, spans)]


def _rise(length: int, overlap: int, guard: int, ratio: int) -> Tensor:
    """Return a weight `[length]` that rises from 0 to 1 over an overlap (in coarse pixels) less its guards."""
    position = torch.arange(length, dtype=torch.float64) + 0.5 - guard * ratio
    share = (position / ((overlap - 2 * guard) * ratio)).clamp(0.0, 1.0)
    return torch.sin(0.5 * torch.pi * share) ** 2


class WholeNoise:
    """The noise of a scene that is drawn as a whole: one sequence of random numbers.

    Args:
        seed: of the sequence.
        shape: (bands, rows, cols).
    """

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self.generator: Optional[torch.Generator] = torch.Generator().manual_seed(seed)
        self._shape = shape

    def __call__(self) -> Tensor:
        """Return the next standard normal `[bands, rows, cols]`."""
        return torch.randn(self._shape, generator=self.generator)


class PlacedNoise:
    """Noise that depends on seed, place in the scene and number of the draw alone, whatever area is asked for.

    Args:
        seed: any integer.
        bands: of the image.
        rows, cols: fine pixels of the scene.
    """

    generator: Optional[torch.Generator] = None
    """There is no one sequence."""

    def __init__(self, seed: int, bands: int, rows: Range, cols: Range) -> None:
        self._seed, self._bands, self._rows, self._cols = seed % 2**64, bands, rows, cols
        self._draw = 0

    def __call__(self) -> Tensor:
        """Return the next standard normal `[bands, rows, cols]`."""
        (top, bottom), (left, right) = self._rows, self._cols
        first = top // CELL, left // CELL
        cells = [
            torch.cat([self._cell(i, j) for j in range(first[1], -(-right // CELL))], dim=2)
            for i in range(first[0], -(-bottom // CELL))
        ]
        self._draw += 1
        top, left = top - first[0] * CELL, left - first[1] * CELL
        rows, cols = self._rows[1] - self._rows[0], self._cols[1] - self._cols[0]
        return torch.cat(cells, dim=1)[:, top : top + rows, left : left + cols].contiguous()

    def _cell(self, row: int, col: int) -> Tensor:
        words = np.random.SeedSequence([self._seed, self._draw, row, col]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0]))
        return torch.randn((self._bands, CELL, CELL), generator=generator)
