# SPDX-License-Identifier: GPL-2.0-or-later
"""Noise of a whole image from a network of limited size: overlapping tiles, blended, groups of three bands.

At every step all tiles of one image are denoised and blended before the data terms look at the whole, so that the
tiles are guided jointly (as MultiDiffusion does: Bar-Tal et al., ICML 2023) and no border remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..control import Control
from .denoiser import CHANNELS, Denoiser

FEW_TILES = 8
"""Tiles whose intermediate results may lie in memory at once; beyond, they are computed again for the gradient."""


def tile_starts(size: int, side: int, overlap: int) -> list[int]:
    """Return where tiles of `side` begin so that they cover `size` pixels, evenly spread, overlapping enough."""
    if size <= side:
        return [0]
    count = -(-(size - overlap) // (side - overlap))
    return [round(i * (size - side) / (count - 1)) for i in range(count)]


def ramp(side: int, overlap: int) -> Tensor:
    """Return the weight of a tile's pixels along one axis, `[side]`: rising over the overlap, flat inside."""
    position = torch.arange(side, dtype=torch.float32) + 0.5
    edge = torch.minimum(position, side - position) / max(1, overlap)
    return torch.sin(0.5 * torch.pi * edge.clamp(max=1.0)) ** 2


def band_groups(count: int) -> list[list[int]]:
    """Return the bands that go through a three-band network together; every band is taken from its last group.

    Where `count` is no multiple of three, the last three bands go once more; fewer than three are repeated.
    """
    if count < CHANNELS:
        return [[i % count for i in range(CHANNELS)]]
    groups = [list(range(i, i + CHANNELS)) for i in range(0, count - CHANNELS + 1, CHANNELS)]
    if count % CHANNELS:
        groups.append(list(range(count - CHANNELS, count)))
    return groups


@dataclass
class TiledNoise:
    """A denoiser for images of any size and number of bands.

    Attributes:
        denoiser: the network.
        side: most rows and columns of a tile.
        overlap: of neighbouring tiles, in pixels.
        half: bfloat16 arithmetic in the network.
    """

    denoiser: Denoiser
    side: int = 160
    overlap: int = 24
    half: bool = False

    def __call__(self, x: Tensor, alpha_bar: float, control: Control) -> Tensor:
        """Return the noise in `x` `[bands, rows, cols]`, differentiable.

        Args:
            x: noisy image.
            alpha_bar: its signal share.
            control: asked for a cancel between tiles, and between groups of bands.
        """
        bands, height, width = x.shape
        m = self.denoiser.multiple
        groups = band_groups(bands)
        # Networks take whole multiples; the image is continued by its mirror image.
        padded = _pad(x, -height % m, -width % m)
        sides = [min(max(m, self.side // m * m), n) for n in padded.shape[1:]]
        rows, cols = (tile_starts(n, s, self.overlap) for n, s in zip(padded.shape[1:], sides))
        rows, cols = ([start // m * m for start in starts] for starts in (rows, cols))
        window = torch.outer(ramp(sides[0], self.overlap), ramp(sides[1], self.overlap)).to(x.device)
        whole = torch.zeros_like(padded)
        weight = torch.zeros_like(padded[0])
        many = len(rows) * len(cols) * len(groups) > FEW_TILES and x.requires_grad
        share = torch.full((1,), alpha_bar, dtype=torch.float64, device=x.device)
        for top in rows:
            for left in cols:
                area = (slice(None), slice(top, top + sides[0]), slice(left, left + sides[1]))
                out = []
                # One group at a time: a cancel is heard between them, and many need no more memory than one.
                for group in groups:
                    control.check()
                    part = padded[area][group][None]
                    out.append(
                        checkpoint(self._epsilon, part, share, use_reentrant=False)
                        if many
                        else self._epsilon(part, share)
                    )
                own = torch.stack([_last(out, groups, b) for b in range(bands)])
                frame = (left, padded.shape[2] - left - sides[1], top, padded.shape[1] - top - sides[0])
                whole = whole + functional.pad(own * window, frame)
                weight = weight + functional.pad(window, frame)
        return (whole / weight)[:, :height, :width]

    def _epsilon(self, part: Tensor, share: Tensor) -> Tensor:
        with torch.autocast(part.device.type, torch.bfloat16, enabled=self.half):
            return self.denoiser.epsilon(part, share).float()


def _last(out: list[Tensor], groups: list[list[int]], band: int) -> Tensor:
    index = max(i for i, g in enumerate(groups) if band in g)
    return out[index][0, groups[index].index(band)]


def _pad(x: Tensor, rows: int, cols: int) -> Tensor:
    if not rows and not cols:
        return x
    mode = "reflect" if rows < x.shape[1] and cols < x.shape[2] else "replicate"
    return functional.pad(x[None], (0, cols, 0, rows), mode=mode)[0]
