# SPDX-License-Identifier: GPL-2.0-or-later
"""HySure: subspace fusion with vector total variation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import separable
from ..scene import Scene, Tile
from .blocks import pull_back
from .linear_model import Block, LinearModelMethod
from .subspace import CoarseWindow, apply

THRESHOLD = 0.3
"""The first soft threshold, in units of the mean gradient: sets ADMM's pace, not its result."""


class HySure(LinearModelMethod):
    """Convex fusion with vector total variation (Simoes, Bioucas-Dias, Almeida and Chanussot 2015).

    IEEE TGRS 53(6), 2015, eq. 5: the coefficients x minimise

        1/2 |z - D x|^2 / hs_noise + 1/2 |g - A x|^2 / guide_noise + weight / mean gradient * sum |grad x|

    with one norm over all components and both directions in each pixel, so that their edges fall together.
    Solved by ADMM (sec. III: SALSA) with the splittings v1 = x (HS term), v2 = x (guide term), v3 = grad x. Blur and
    decimation of a block are separable and the gradient's Laplacian is diagonal in the cosine transform, so each
    step is exact with the block's true borders, where the paper takes periodic ones. Blur and response are
    estimated from the pair, as in the paper's section IV. Blocks overlap by the halo.

    Options:
        weight: of the total variation.
        iterations: of ADMM.
        rank, register, frame, srf: see `LinearModel`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        **LinearModelMethod.defaults,
        "rank": 10,
        "weight": 2.0,
        "iterations": 25,
    }

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn the model, the basis in which edges are counted, and the mean gradient."""
        self.control = control
        self._slopes: Tensor | None = None
        self._pixels = 0
        super().fit(scene, control)
        # The basis in which detail is white and the noise independent: y = inward x.
        scale = self.hs_noise.sqrt()
        power, vectors = torch.linalg.eigh(self.detail / scale[:, None] / scale[None, :])
        # Where the detail is below the noise, its unit is the noise: TV would see nothing else.
        power = power.clamp_min(1.0)
        root = power.sqrt()
        self.inward = vectors.T / root[:, None] / scale[None, :]
        self.outward = scale[:, None] * vectors * root[None, :]
        self.noise = 1.0 / power
        mixing = self.mixing @ self.outward
        slopes = torch.zeros_like(self.detail) if self._slopes is None else self._slopes
        square = (self.inward @ slopes @ self.inward.T).diagonal() / max(1, self._pixels)
        # White noise of variance n adds 4 n to the squared differences along two directions.
        self.mean_gradient = float((square - 4.0 * self.noise).clamp_min(0).sum().sqrt()) / scene.ratio
        self.mean_gradient = max(self.mean_gradient, 1e-30)
        self.penalty = float(self.parameters["weight"]) / (THRESHOLD * self.mean_gradient**2)
        self.view = mixing
        first = mixing @ mixing.T
        self.first_gains = torch.linalg.solve(first + torch.diag(self.guide_noise), mixing).T
        self.gains = torch.linalg.solve(first + self.penalty * torch.diag(self.guide_noise), mixing).T

    def observe(self, window: CoarseWindow) -> None:
        """Add up the products of the coarse gradients."""
        z, mask = window.pair.coefficients, window.pair.mask
        down, right = z[:, 1:, :-1] - z[:, :-1, :-1], z[:, :-1, 1:] - z[:, :-1, :-1]
        keep = mask[1:, :-1] & mask[:-1, 1:] & mask[:-1, :-1]
        for slope in (down[:, keep].to(torch.float64), right[:, keep].to(torch.float64)):
            product = (slope @ slope.T).cpu()
            self._slopes = product if self._slopes is None else self._slopes + product
        self._pixels += int(keep.sum())

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the minimiser on the tile's block."""
        block = self.block(tile)
        return self.assemble(block, self.solve(block))

    def solve(self, block: Block) -> Tensor:
        """Return the coefficients of a block, `[rank, rows, cols]`."""
        rows, cols = (_Cosine(n, block.start.device) for n in block.start.shape[1:])
        laplacian = 2.0 + rows.values[:, None] + cols.values[None, :]
        strength = self.penalty * self.noise
        threshold = THRESHOLD * self.mean_gradient
        target, seen = apply(self.inward, block.target), block.hs_seen
        x = apply(self.inward, block.start) + apply(self.first_gains, block.missing)
        # Of each splitting v = x with scaled multiplier d only what was denoised, near = x - d, and the outcome v
        # are kept: then d = v - near, and the next x sees v + d = 2 v - near. At first v = x and d = 0.
        right = 2.0 * x
        d1, d2 = torch.zeros_like(x), torch.zeros_like(x)
        slopes = gradient(x)
        divergence(*slopes, right)
        d3 = [torch.zeros_like(s) for s in slopes]
        # Where the HS image is missing, v1's own last view stands in for it: a proximal term. Without one the step
        # below, exact for whole images only, would let ADMM diverge beside gaps.
        whole = bool(seen.all())
        stand_in = target if whole else block.degrade(x)
        for _ in range(int(self.parameters["iterations"])):
            self.control.check()
            turned = separable(rows.matrix, cols.matrix, right).div_(laplacian)
            x = separable(rows.matrix.T, cols.matrix.T, turned)
            # HS term: v1 = near + change, so v1 + d1 = near + 2 change and d1 = change.
            near = x - d1
            low = block.degrade(near)
            wanted = target if whole else torch.where(seen, target, stand_in)
            d1 = pull_back(wanted - low, strength, block.rows, block.cols)
            if not whole:
                stand_in = low + block.degrade(d1)
            right = near.add_(d1, alpha=2.0)
            near = x - d2
            d2 = apply(self.gains, (block.guide - apply(self.view, near)) * block.seen)
            right += near.add_(d2, alpha=2.0)
            # Gradient: v3 = shrink near, so v3 + d3 = (2 shrink - 1) near and d3 = (shrink - 1) near.
            near3 = [s.sub_(d) for s, d in zip(gradient(x), d3)]
            size = sum(torch.linalg.vector_norm(n, dim=0).square_() for n in near3).sqrt_()
            shrink = (1.0 - threshold / size.clamp_min_(1e-30)).clamp_min_(0.0)
            divergence(*(n * (2.0 * shrink - 1.0) for n in near3), right)
            d3 = [n.mul_(shrink - 1.0) for n in near3]
        return apply(self.outward, x)

    def describe(self) -> dict[str, Any]:
        """Return what the model says, and the mean gradient in noise units."""
        return {**super().describe(), "mean_gradient": round(self.mean_gradient, 6)}


class _Cosine:
    """The cosine transform (DCT-II) of one axis: eigenvectors of the second difference with free ends."""

    def __init__(self, size: int, device: torch.device) -> None:
        k = torch.arange(size, dtype=torch.float64)
        matrix = torch.cos(math.pi / size * k[:, None] * (k[None, :] + 0.5)) * math.sqrt(2.0 / size)
        matrix[0] *= math.sqrt(0.5)
        self.matrix = matrix.to(device, torch.float32)
        self.values = (2.0 - 2.0 * torch.cos(math.pi / size * k)).to(device, torch.float32)


def gradient(image: Tensor) -> list[Tensor]:
    """Return the forward differences along rows and columns, 0 at the far ends; each of `image`'s shape."""
    down, right = torch.zeros_like(image), torch.zeros_like(image)
    torch.sub(image[:, 1:], image[:, :-1], out=down[:, :-1])
    torch.sub(image[:, :, 1:], image[:, :, :-1], out=right[:, :, :-1])
    return [down, right]


def divergence(down: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Add the adjoint of `gradient`, applied to its two parts, to `out`."""
    out[:, :-1] -= down[:, :-1]
    out[:, 1:] += down[:, :-1]
    out[:, :, :-1] -= right[:, :, :-1]
    out[:, :, 1:] += right[:, :, :-1]
    return out
