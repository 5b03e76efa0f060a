# SPDX-License-Identifier: GPL-2.0-or-later
"""Sums over sliding windows, and which windows lie wholly on valid pixels of a tile's core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import CHUNK_VALUES_CUDA, Core

CHUNK_VALUES = 140_000
"""Values of one image whose windows are worked on at once on a CPU: several maps of them fit its cache."""


def slide(maps: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sums over square windows, `[..., rows - n + 1, cols - n + 1]` ("valid").

    Args:
        maps: `[..., rows, cols]`.
        weights: the n weights of one side; the window's are their outer product.
    """
    n = len(weights)
    for dim in (-2, -1):
        size = maps.shape[dim] - n + 1
        total = maps.narrow(dim, 0, size) * weights[0]
        for k in range(1, n):
            total.add_(maps.narrow(dim, k, size), alpha=weights[k])
        maps = total
    return maps


def core_windows(mask: Tensor, core: Core, before: int, after: int) -> tuple[Core, Core, Tensor]:
    """Return where to slide a window of `before + 1 + after` pixels a side so that it is centred on the core.

    Beyond the tile's edge there is no data: windows that leave the tile or touch a masked pixel do not count.

    Args:
        mask: `[rows, cols]` bool, of the whole tile.
        core: the tile's part that counts.
        before: pixels of the window above (and left of) its centre.
        after: pixels below (and right of) it.

    Returns:
        The (row, col) slices of the tile that the windows cover, the slices of the tile where their centres lie
        (empty when no window fits), and `[rows, cols]` bool of the centres: the window counts.
    """
    cover, centres = [], []
    for size, part in zip(mask.shape, core):
        start, stop, _ = part.indices(size)
        first, last = max(start, before), min(stop, size - after)
        last = max(last, first)
        centres.append(slice(first, last))
        cover.append(slice(first - before, last + after if last > first else first - before))
    rows, cols = cover
    good = mask[rows, cols]
    if centres[0].start == centres[0].stop or centres[1].start == centres[1].stop:
        count = torch.zeros(
            (centres[0].stop - centres[0].start, centres[1].stop - centres[1].start),
            dtype=torch.bool,
            device=mask.device,
        )
        return (rows, cols), (centres[0], centres[1]), count
    n = before + 1 + after
    bad = pad(torch.cumsum(torch.cumsum((~good).to(torch.int32), 0), 1), (1, 0, 1, 0))
    inside = bad[n:, n:] - bad[:-n, n:] - bad[n:, :-n] + bad[:-n, :-n] == 0
    return (rows, cols), (centres[0], centres[1]), inside


def band_groups(bands: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of bands that keep the working copies of `pixels` pixels small."""
    limit = CHUNK_VALUES_CUDA if device.type == "cuda" else CHUNK_VALUES
    step = max(1, limit // max(1, pixels))
    for first in range(0, bands, step):
        yield slice(first, min(bands, first + step))
