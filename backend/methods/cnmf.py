# SPDX-License-Identifier: GPL-2.0-or-later
"""CNMF: coupled non-negative matrix factorisation, unmixing both images with the same endmembers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import separable
from ..scene import Scene, Tile
from .blocks import pull_back
from .linear_model import Block, LinearModelMethod
from .subspace import apply

SAMPLE = 48
"""Side in coarse pixels of the windows on which endmembers are learned; `SAMPLES` along each axis at most."""
SAMPLES = 2
SUM_WEIGHT = 0.5
"""Weight of the abundances' sum-to-one row, relative to the spectra's root mean square."""
TINY = 1e-9
CHUNK = 4096
"""Pixels updated at once."""


class CNMF(LinearModelMethod):
    """Coupled non-negative matrix factorisation (Yokoya, Yairi and Iwasaki, IEEE TGRS 50(2), 2012).

    HS image = W H_h, guide = R W H_m + offset, H_h = D H_m, all factors non-negative, abundances summing to about
    one (a row of ones, eq. 9). On windows of the scene the endmembers W are initialised and refined by the paper's
    alternation: H_h from the HS image (eq. 6), H_m from the guide starting at the interpolated H_h (eq. 8), W from
    the HS image and D H_m (eq. 5), by multiplicative updates. Each tile is then unmixed with these endmembers.
    The endmembers' start is the successive projection algorithm (deterministic) in place of VCA; R, D and offset
    are estimated from the pair. What the unmixed tile, degraded, leaves of the HS image is pulled back into it.

    Options:
        endmembers: most endmembers; never more than the subspace's rank + 1.
        outer, inner: iterations of the alternation and of the updates.
        rank, register, frame, srf: see `LinearModel`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        **LinearModelMethod.defaults,
        "rank": 16,
        "endmembers": 20,
        "outer": 4,
        "inner": 200,
    }

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the model and the endmembers."""
        self.control = control
        super().fit(scene, control)
        samples = list(self._samples(scene, control))
        spectra = torch.cat([self._spectra(b).flatten(1)[:, b.pair.mask.flatten()] for b in samples], dim=1)
        # Unmixing needs non-negative values: bands that go below zero are lifted.
        self.base = spectra.amin(dim=1).clamp_max(0).to(torch.float32)
        spectra = spectra - self.base[:, None]
        self.unit = float(spectra.square().mean().sqrt().clamp_min(1e-30))
        count = min(int(self.parameters["endmembers"]), self.subspace.rank + 1, spectra.shape[1])
        self.endmembers = successive_projections(spectra, count).clamp_min(TINY * self.unit)
        # guide = response hs + offset: with the model's offset moved to where hs is measured from `base`.
        response = self.response.to(self.base)
        self.view = response
        constant = (self.guide_mean + self.guide_offset).to(self.base)
        self.constant = constant - response @ (self.subspace.mean.to(self.base) - self.base)
        # A guide band counts like an HS band of the same strength, whatever its units, and as far as the HS image
        # explains it.
        seen = (response @ spectra).square().mean(dim=1).sqrt()
        share = self.explained.to(seen).sqrt()
        self.guide_scale = torch.where(
            (seen > 0) & (share > 0), self.unit * share / seen.clamp_min(1e-30), 0.0
        )
        self.strength = self.hs_noise / self.detail.diagonal()
        for _ in range(int(self.parameters["outer"])):
            self._refine(samples, control)

    def _samples(self, scene: Scene, control: Control) -> Iterator[Block]:
        """Yield blocks spread over the scene."""
        r = scene.ratio
        starts = []
        for size in scene.coarse_shape:
            count = min(SAMPLES, max(1, size // SAMPLE))
            side = min(size, SAMPLE)
            starts.append([(round(i * (size - side) / max(1, count - 1)), side) for i in range(count)])
        for row, height in starts[0]:
            for col, width in starts[1]:
                control.check()
                tile = scene.tile((row * r, (row + height) * r), (col * r, (col + width) * r), self.halo)
                block = self.block(tile)
                if bool(block.pair.mask.any()):
                    yield block

    def _spectra(self, block: Block) -> Tensor:
        """Return the HS image of the tile's coarse pixels, denoised, `[bands, rows, cols]`."""
        spectra = apply(self.subspace.decode, block.pair.coefficients)
        return spectra + self.subspace.mean.to(spectra)[:, None, None]

    def _refine(self, samples: list[Block], control: Control) -> None:
        """Update the endmembers once from all samples (eq. 5 with H_h = D H_m)."""
        product = square = None
        for block in samples:
            control.check()
            abundance = block.degrade(self.unmix(block))
            keep = block.hs_seen.flatten()
            h = abundance.flatten(1)[:, keep]
            v = (self._spectra(block)[block.inner].flatten(1)[:, keep] - self.base[:, None]).clamp_min(0)
            mine = v @ h.T, h @ h.T
            product, square = mine if product is None else (product + mine[0], square + mine[1])
        for _ in range(int(self.parameters["inner"])):
            self.endmembers *= product / (self.endmembers @ square).clamp_min(TINY * self.unit)

    def unmix(self, block: Block) -> Tensor:
        """Return the abundances on the block's fine pixels, `[endmembers, rows, cols]`."""
        count, inner = self.endmembers.shape[1], int(self.parameters["inner"])
        weight = SUM_WEIGHT * self.unit
        ones = torch.full((1, count), weight, dtype=self.endmembers.dtype, device=self.endmembers.device)
        # HS image: abundances on the coarse grid.
        values = (self._spectra(block) - self.base[:, None, None]).clamp_min(0)
        shape = values.shape[1:]
        values = torch.cat([values.flatten(1), values.new_full((1, values[0].numel()), weight)])
        factors = torch.cat([self.endmembers, ones])
        start = torch.full((count, values.shape[1]), 1.0 / count, device=values.device)
        coarse = multiply(factors, values, start, inner, self.control).view(count, *shape)
        # Guide: from their interpolation, on the fine grid.
        start = separable(block.rows.up, block.cols.up, coarse).clamp_min(TINY)
        scale = self.guide_scale[:, None]
        guide = block.guide + (self.guide_mean + self.guide_offset).to(block.guide)[:, None, None]
        guide = ((guide - self.constant[:, None, None]).flatten(1) * scale).clamp_min(0)
        values = torch.cat([guide, guide.new_full((1, guide.shape[1]), weight)])
        factors = torch.cat([(self.view @ self.endmembers) * scale, ones])
        fine = multiply(factors, values, start.flatten(1), inner, self.control).view(start.shape)
        return torch.where(block.seen, fine, start)

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the endmembers mixed by the fine abundances."""
        block = self.block(tile)
        abundance = self.unmix(block)
        into = self.subspace.encode.to(abundance) @ self.endmembers
        offset = self.subspace.encode.to(abundance) @ (self.base - self.subspace.mean.to(abundance))
        x = apply(into, abundance) + offset[:, None, None]
        residual = (block.target - block.degrade(x)) * block.hs_seen
        return self.assemble(block, x + pull_back(residual, self.strength, block.rows, block.cols))

    def describe(self) -> dict[str, Any]:
        """Return what the model says, and the number of endmembers."""
        return {**super().describe(), "endmembers": self.endmembers.shape[1]}


def multiply(factors: Tensor, values: Tensor, start: Tensor, iterations: int, control: Control) -> Tensor:
    """Return non-negative H that lowers |values - factors H|, from `start` (Lee and Seung's multiplicative rule).

    Args:
        factors: `[rows, count]` >= 0.
        values: `[rows, n]` >= 0.
        start: `[count, n]` >= 0.
    """
    product, square = factors.T @ values, factors.T @ factors
    floor = TINY * float(square.diagonal().mean())
    out = start.clone()
    # A chunk stays in the processor's cache through all of its iterations.
    for first in range(0, out.shape[1], CHUNK):
        control.check()
        part, wanted = (
            out[:, first : first + CHUNK].contiguous(),
            product[:, first : first + CHUNK].contiguous(),
        )
        for _ in range(iterations):
            part *= wanted / torch.mm(square, part).add_(floor)
        out[:, first : first + CHUNK] = part
    return out


def successive_projections(spectra: Tensor, count: int) -> Tensor:
    """Return `count` of the columns `[bands, n]` that span a large simplex, `[bands, count]`.

    Araujo et al., Chemom. Intell. Lab. Syst. 57(2), 2001: the longest column, then the longest of what remains
    when its direction is projected out, and so on. Deterministic.
    """
    rest = spectra.to(torch.float64)
    chosen = []
    for _ in range(count):
        length = rest.square().sum(dim=0)
        best = int(length.argmax())
        if float(length[best]) <= 1e-12 * float(spectra.square().sum(dim=0).max()):
            break
        chosen.append(best)
        direction = rest[:, best] / length[best].sqrt()
        rest = rest - direction[:, None] * (direction @ rest)[None, :]
    return spectra[:, chosen or [0]].clone()
