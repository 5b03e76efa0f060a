# SPDX-License-Identifier: GPL-2.0-or-later
"""The Gaussian process of one block of kernel regression: its kernels, its data, its mean at fine pixels.

The model stands in `kernel_regression`, which cuts a scene into such blocks. Everything here can be differentiated:
training goes through it (`training/kernel.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..degradation import separable
from ..models.kernel_features import KernelFeatures

SMOOTH, EVERYWHERE = "smooth", math.inf
TERMS: tuple[tuple[str, float], ...] = (
    ("linear", EVERYWHERE),
    ("linear", 1.0),
    ("linear", 2.0),
    ("linear", 6.0),
    ("expanded", EVERYWHERE),
    ("expanded", 3.0),
    ("estimate", EVERYWHERE),
    ("learned", EVERYWHERE),
    ("learned", 4.0),
    ("learned", 1.5),
    (SMOOTH, 0.6),
    (SMOOTH, 1.2),
    (SMOOTH, 3.0),
)
"""Kernels: of which features (the guide, it and its logarithms, the closed form's coefficients, the learned ones, or
none at all), and over how many coarse pixels they hold together."""
JITTERS = (2e-4, 5e-3, 5e-2)
"""Share of the kernels' variance that is added to the noise, tried in turn until the system can be solved."""
CHUNK = 512
"""Fine pixels that are predicted at once."""


@dataclass
class KernelBlock:
    """What a block's regression sees; coefficients are centred and in units of their own coarse deviation.

    Attributes:
        image: `[INPUTS, rows, cols]` of the block's fine pixels with context.
        fixed: features that are not learned, `[n, rows, cols]`, by name.
        down: what degrades rows and columns to the coarse pixels, shift included: `[h, rows]`, `[w, cols]`.
        valid: `[h, w]`, True where a coarse pixel takes part.
        target: `[K, valid pixels]`.
        noise: `[K]`, what is known of the target's noise variance.
        spoilt: `[valid pixels]`, noise variance that gaps add.
        known: `[rows, cols]`, True where both images are valid.
        facts: `[K, FACTS]`.
        coarse_places, fine_places: (rows, cols): centres in coarse pixels of the HS grid, `[h]`, `[w]` and `[rows]`,
            `[cols]`.
        psf: variance of the PSF, in coarse pixels squared.
        mixing: `[guide bands, K]`: the standardised guide of the coefficients.
        unexplained: `[guide bands]`: variance that it leaves of the guide.
        guide: `[guide bands, rows, cols]`: what of the standardised guide these coefficients have to explain.
        estimate: `[K, rows, cols]`: the closed form's coefficients.
        centre, scale: `[K]`: coefficients = centre + scale * what is regressed.
    """

    image: Tensor
    fixed: dict[str, Tensor]
    down: tuple[Tensor, Tensor]
    valid: Tensor
    target: Tensor
    noise: Tensor
    spoilt: Tensor
    known: Tensor
    facts: Tensor
    coarse_places: tuple[Tensor, Tensor]
    fine_places: tuple[Tensor, Tensor]
    psf: float
    mixing: Tensor
    unexplained: Tensor
    guide: Tensor
    estimate: Tensor
    centre: Tensor
    scale: Tensor

    def features(self, model: KernelFeatures) -> dict[str, FeatureKind]:
        """Return every kind of features by name: those of `fixed`, and "learned"."""
        found = {name: FeatureKind([self._seen(fine)], [fine]) for name, fine in self.fixed.items()}
        seen, kept = [], []
        for fine in model.views(self.image):
            seen.append(self._seen(fine))
            # By far the largest arrays of a block; half of their digits are enough to predict by.
            kept.append(fine if fine.requires_grad else fine.half())
        return {**found, "learned": FeatureKind(seen, kept)}

    def _seen(self, fine: Tensor) -> Tensor:
        """Return features `[n, rows, cols]` as the HS sensor sees them, `[n, valid pixels]`."""
        return separable(*self.down, fine)[:, self.valid]


class FeatureKind:
    """Features of one kind, less their mean over the coarse pixels.

    Args:
        coarse_parts: on the coarse pixels, each `[n, valid pixels]`.
        fine_parts: on the fine ones, each `[n, rows, cols]`.

    Attributes:
        coarse: on the coarse pixels, `[all n, valid pixels]`, less the mean.
        fine_parts: as given, with the mean.
    """

    def __init__(self, coarse_parts: list[Tensor], fine_parts: list[Tensor]) -> None:
        coarse = torch.cat(coarse_parts)
        self._mean = coarse.mean(dim=1, keepdim=True)
        self.coarse, self.fine_parts = coarse - self._mean, fine_parts

    def at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return those of some fine pixels, `[all n, pixels]`, less the mean."""
        return torch.cat([part[:, rows, cols].to(self._mean) for part in self.fine_parts]) - self._mean


def _nearness(
    pixels: tuple[Tensor, Tensor], axes: tuple[Tensor, Tensor], valid: Tensor, variance: float
) -> Tensor:
    """Return `exp(-distance^2 / (2 variance))` between pixels and the valid coarse ones, `[pixels, valid pixels]`.

    Args:
        pixels: their places (rows, cols), `[pixels]`.
        axes: places of the coarse rows and columns, `[h]` and `[w]`.
        valid: `[h, w]`.
        variance: in coarse pixels squared.
    """
    # A Gaussian is a product over the axes: few exponentials instead of one for each pair of pixels.
    rows, cols = (
        torch.exp((a[:, None] - b[None, :]).square() * (-0.5 / variance)) for a, b in zip(pixels, axes)
    )
    near = (rows[:, :, None] * cols[:, None, :]).flatten(1)
    return near if bool(valid.all()) else near[:, valid.flatten()]


def _smooth(pixels: tuple[Tensor, Tensor], block: KernelBlock, length: float, blurs: int) -> Tensor:
    """Return the kernel of no features: a Gaussian one seen through Gaussian PSFs, so a wider and lower one.

    Args:
        pixels: see `_nearness`.
        block: where they are.
        length: of the kernel, in coarse pixels.
        blurs: PSFs that it is seen through: 2 between coarse pixels, 1 to fine ones.
    """
    wide = length**2 + blurs * block.psf
    return _nearness(pixels, block.coarse_places, block.valid, wide).mul_(length**2 / wide)


def _coarse_kernels(block: KernelBlock, coarse: dict[str, Tensor]) -> Tensor:
    """Return every kernel of `TERMS` between the coarse pixels, `[terms, valid pixels, valid pixels]`.

    Args:
        block: where they are.
        coarse: their features, by name.
    """
    y, x = torch.nonzero(block.valid, as_tuple=True)
    here = block.coarse_places[0][y], block.coarse_places[1][x]
    products = {name: own.T @ own for name, own in coarse.items()}
    found = []
    for name, length in TERMS:
        if name == SMOOTH:
            found.append(_smooth(here, block, length, 2))
        elif length == EVERYWHERE:
            found.append(products[name])
        else:
            found.append(products[name] * _nearness(here, block.coarse_places, block.valid, length**2))
    return torch.stack(found)


def matrix_bytes(count: int) -> int:
    """Return the memory that regressing `count` components takes at most, in bytes for each pair of coarse pixels."""
    # Every kernel is there twice while they are stacked, and their sum for each component.
    return 4 * (2 * len(TERMS) + count)


def _solved(alike: Tensor, noise: Tensor, power: Tensor, target: Tensor) -> Tensor | None:
    """Return the weights of the coarse pixels of one component, `[valid pixels]`; None if they cannot be solved for.

    Args:
        alike: what its kernels say of the coarse pixels, `[valid pixels, valid pixels]`.
        noise: variance of each, `[valid pixels]`.
        power: variance of the kernels.
        target: `[valid pixels]`.
    """
    for jitter in JITTERS:
        factor, failed = torch.linalg.cholesky_ex(alike + torch.diag(noise + jitter * power))
        if not bool(failed) and bool(torch.isfinite(factor).all()):
            return torch.cholesky_solve(target[:, None], factor)[:, 0]
    return None


def _predict(
    fine: dict[str, Tensor],
    coarse: dict[str, Tensor],
    places: tuple[Tensor, Tensor],
    block: KernelBlock,
    weights: Tensor,
) -> Tensor:
    """Return the sum over kernels and coarse pixels at some fine pixels, `[pixels, K]`.

    Args:
        fine: features of the fine pixels, `[n, pixels]`, by name.
        coarse: those of the coarse ones.
        places: of the fine pixels, (rows, cols).
        block: where they are.
        weights: `[terms, valid pixels, K]`.
    """
    near = {
        length: _nearness(places, block.coarse_places, block.valid, length**2)
        for length in {length for name, length in TERMS if name != SMOOTH and length != EVERYWHERE}
    }
    products: dict[str, Tensor] = {}
    found = torch.zeros(len(places[0]), weights.shape[2], device=weights.device)
    for (name, length), weight in zip(TERMS, weights):
        if name == SMOOTH:
            found = found + _smooth(places, block, length, 1) @ weight
        elif length == EVERYWHERE:
            found = found + fine[name].T @ (coarse[name] @ weight)
        else:
            if name not in products:
                products[name] = fine[name].T @ coarse[name]
            found = found + (products[name] * near[length]) @ weight
    return found


def regress(
    model: KernelFeatures,
    block: KernelBlock,
    rows: Tensor,
    cols: Tensor,
    check: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Return the regressed coefficients of some fine pixels, `[K, pixels]`, centred and scaled; None if unsolvable.

    Args:
        model: the learned part.
        block: the data.
        rows, cols: the pixels, as indices into the block's fine ones, `[pixels]`.
        check: called now and then, a few times a second; stops the work by raising.
    """
    strength, noise, spread, doubt, share = model.strengths(block.facts)
    features = block.features(model)
    coarse = {name: kind.coarse for name, kind in features.items()}
    check()
    kernels = _coarse_kernels(block, coarse)
    size = kernels.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-9)
    strength = strength / size
    alike = (strength @ kernels.flatten(1)).view(-1, *kernels.shape[1:])
    del kernels
    power = (strength * size).sum(dim=1).clamp_min(1.0)
    solved = []
    for k, own in enumerate(block.noise + noise):
        check()
        found = _solved(alike[k], own + block.spoilt, power[k], block.target[k])
        if found is None:
            return None
        solved.append(found)
    del alike
    weights = torch.stack(solved)
    weights = (strength[:, :, None] * weights[:, None, :]).permute(1, 2, 0).contiguous()
    parts = []
    for start in range(0, len(rows), CHUNK):
        check()
        r, c = rows[start : start + CHUNK], cols[start : start + CHUNK]
        there = block.fine_places[0][r], block.fine_places[1][c]
        fine = {name: kind.at(r, c) for name, kind in features.items()}
        parts.append(_predict(fine, coarse, there, block, weights))
    result = torch.cat(parts).T
    # The guide's own equation, as far as it holds: a linear-Gaussian update of each pixel.
    spreads = block.mixing * spread
    system = spreads @ block.mixing.T + torch.diag(block.unexplained * doubt + 1e-6)
    left = block.guide[:, rows, cols] - block.mixing @ result
    result = result + spreads.T @ torch.linalg.solve(system, left)
    closed = block.estimate[:, rows, cols]
    return closed + share[:, None] * (result - closed)
